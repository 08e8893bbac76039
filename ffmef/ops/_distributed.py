"""Linear operators on DTensors, sharded over the batch, the images or the channels.

Each process runs the operator on its shards. Over the batch and the channels they are independent; over the images the
result is a sum, ``Partial``. Windows and interpolation reach beyond a shard of rows or columns: that is refused.

All arguments are redistributed to one sharding, which costs nothing for replicated ones. Each gradient has the
placement of its tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ffmef.ops._linear import LinearOperator

AXES = ("the batch", "the images", "the channels")
_IMAGES = 1
_OUTPUT_AXES = (0, None, 1)  # of the result (B, C, H, W); over the images it is a sum


def register(spec: LinearOperator, name: str) -> None:
    """Register the forward and the backward operator for DTensors; needs ``torch.distributed.tensor``."""
    from torch.distributed.tensor import DTensor

    def forward(cls, op, types, args, kwargs=None):
        flat, ends = spec.flat(args)
        return _forward(spec, op, flat, ends, args[spec.count :])

    def backward(cls, op, types, args, kwargs=None):
        grad, *arguments = args
        flat, ends = spec.flat(arguments)
        rest = arguments[spec.count :]
        flags = rest[-spec.count :]
        needs = [bool(n) for flag in flags for n in (flag if isinstance(flag, (list, tuple)) else (flag,))]
        return _backward(spec, op, grad, flat, ends, rest[: -spec.count], needs)

    for one, rule in ((name, forward), (f"{name}_backward", backward)):
        torch.library.register_torch_dispatch(f"ffmef::{one}", DTensor, rule)


def _forward(spec: LinearOperator, op, flat: Sequence[Tensor], ends, options) -> Tensor:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    mesh = _mesh(spec, flat, ends)
    chosen = _chosen_axes(spec, mesh, flat, ends)
    local = _locals(spec, mesh, chosen, flat, ends)
    out = spec.run_forward(op, local, ends, options)
    placements = [
        Replicate() if axis is None else Partial() if axis == _IMAGES else Shard(cast(int, _OUTPUT_AXES[axis]))
        for axis in chosen
    ]
    images = flat[ends[spec.images] - 1]
    return DTensor.from_local(out, mesh, placements, run_check=False, **_layout(images.shape[:1] + images.shape[2:]))


def _backward(spec: LinearOperator, op, grad, flat: Sequence[Tensor], ends, options, needs) -> list[Tensor]:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    mesh = _mesh(spec, flat, ends)
    chosen = _chosen_axes(spec, mesh, flat, ends)
    local = _locals(spec, mesh, chosen, flat, ends)
    wanted = [
        Replicate() if axis is None or axis == _IMAGES else Shard(cast(int, _OUTPUT_AXES[axis])) for axis in chosen
    ]
    if not isinstance(grad, DTensor):
        grad = DTensor.from_local(grad, mesh, [Replicate()] * mesh.ndim, run_check=False)
    local_grad = grad.redistribute(mesh, wanted).to_local()
    found = spec.run_backward(op, local_grad, local, ends, options, needs)
    axes = _axes(spec, ends)
    grads = []
    for tensor, own, gradient, need in zip(flat, axes, found, needs, strict=True):
        if not need:
            grads.append(gradient)
            continue
        placements = [
            Replicate() if axis is None else Partial() if own[axis] is None else Shard(cast(int, own[axis]))
            for axis in chosen
        ]
        full = DTensor.from_local(gradient, mesh, placements, run_check=False, **_layout(tensor.shape))
        if isinstance(tensor, DTensor):
            kept = [Replicate() if placement.is_partial() else placement for placement in tensor.placements]
            grads.append(full.redistribute(mesh, kept))
        else:
            grads.append(full.redistribute(mesh, [Replicate()] * mesh.ndim).to_local())
    return grads


def _layout(shape: Sequence[int]) -> dict[str, Any]:
    """Return the global shape and the strides of a contiguous tensor: uneven shards do not reveal them."""
    stride, strides = 1, []
    for size in reversed(shape):
        strides.append(stride)
        stride *= max(size, 1)
    return {"shape": torch.Size(shape), "stride": tuple(reversed(strides))}


def _axes(spec: LinearOperator, ends) -> list[tuple[int | None, ...]]:
    """Return for each tensor its dimensions of :data:`AXES`."""
    return [spec.axes[spec.arguments[number].name] for number, _ in _numbered(spec, ends)]


def _numbered(spec: LinearOperator, ends) -> list[tuple[int, str]]:
    """Return for each tensor its argument's number and its name in messages."""
    numbered, start = [], 0
    for number, (argument, end) in enumerate(zip(spec.arguments, ends, strict=True)):
        for index in range(end - start):
            numbered.append((number, f"{argument.name}[{index}]" if argument.is_list else argument.name))
        start = end
    return numbered


def _mesh(spec: LinearOperator, flat: Sequence[Tensor], ends):
    """Return the mesh of all DTensors; plain tensors are allowed where every process needs the whole tensor."""
    from torch.distributed.tensor import DTensor

    mesh = None
    for tensor, own, (_, name) in zip(flat, _axes(spec, ends), _numbered(spec, ends), strict=True):
        if not isinstance(tensor, DTensor):
            if own[0] is not None:
                raise ValueError(f"{name} must be a DTensor like the other tensors, got a plain tensor")
        elif mesh is None:
            mesh = tensor.device_mesh
        elif tensor.device_mesh != mesh:
            raise ValueError(f"{name} must be on the mesh {mesh} like the other tensors, got {tensor.device_mesh}")
    return mesh


def _chosen_axes(spec: LinearOperator, mesh, flat: Sequence[Tensor], ends) -> list[int | None]:
    """Return for each dimension of the mesh which axis it shards: 0, 1 or 2 of :data:`AXES`, or None."""
    from torch.distributed.tensor import DTensor, Shard

    chosen: list[int | None] = [None] * mesh.ndim
    for tensor, own, (_, name) in zip(flat, _axes(spec, ends), _numbered(spec, ends), strict=True):
        for place, placement in enumerate(tensor.placements if isinstance(tensor, DTensor) else ()):
            if placement.is_replicate() or placement.is_partial():
                continue
            dim = placement.dim % tensor.dim() if type(placement) is Shard else None
            axis = own.index(dim) if dim in own else None
            if axis is None:
                allowed = " or ".join(
                    f"{what} (Shard({d}))" for what, d in zip(AXES, own, strict=True) if d is not None
                )
                rule = f"must be sharded over {allowed} or replicated" if allowed else "must be replicated"
                raise ValueError(f"{name} {rule} for ffmef::{spec.name}, got {placement!r}")
            if chosen[place] is None:
                chosen[place] = axis
            elif chosen[place] != axis:
                raise ValueError(
                    f"{name} must be sharded over {AXES[cast(int, chosen[place])]} like the tensors before it, "
                    f"got {placement!r}"
                )
    return chosen


def _locals(spec: LinearOperator, mesh, chosen, flat: Sequence[Tensor], ends) -> list[Tensor]:
    """Return each tensor's shard under the chosen sharding."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    local = []
    for tensor, own in zip(flat, _axes(spec, ends), strict=True):
        if isinstance(tensor, DTensor):
            placements = [
                Replicate() if axis is None or own[axis] is None else Shard(cast(int, own[axis])) for axis in chosen
            ]
            tensor = tensor.redistribute(mesh, placements).to_local()
        local.append(tensor)
    return local
