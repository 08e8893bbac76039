"""Registers operators that are linear in each of their tensors: all that torch asks of an operator, written once.

Such an operator needs two kernels, forward and backward (the gradients of all tensors). Everything that follows from
linearity is here: derivatives of every order in both modes, vmap and all of torch.func, shapes, autocast, and the plain
torch fallback. All of it is registered with the dispatcher and therefore works in compiled, exported and traced graphs
too.

With T = <grad, forward(x_1, ..., x_n)>, linear in each x, the derivative of T along a change d of x_i is T with d in
place of x_i. Forward is the gradient of T in grad and backward its gradients in the x, so every derivative below is
one of the two operators with one argument exchanged.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from ffmef.ops import _distributed
from ffmef.ops._after_import import after_import
from ffmef.ops.library import (
    PLAIN_TYPES,
    call,
    define,
    direct_autograd,
    fallback,
    flop_counters,
    forward_mode_inside,
    implement,
    library,
    operator,
)

_BELOW_AUTOGRAD = torch._C._after_autograd_keyset
_LEGACY_LEVELS = 64  # of the vmap that is_grads_batched of torch.autograd still uses


@dataclass(frozen=True)
class Argument:
    name: str
    is_list: bool


@dataclass
class LinearOperator:
    """An operator ``(tensors and lists of tensors, options) -> Tensor`` with images (B, N, C, H, W) among its tensors.

    Attributes:
        name: in the dispatcher's namespace.
        schema: of the arguments, ``"(Tensor images, Tensor[] filters, str padding_mode)"``; tensors come first.
        groups: names of arguments that the operator is linear in together, one group after the other.
        vanishing: group number to arguments that must be zero when the group is exchanged: biases beside a product.
        axes: arguments to their dimensions of batch, images and channels; without a batch they are shared.
        promote: what autocast does to the tensors; flat list to flat list.
        keep: ``(run, flat, options) -> (result, extra)`` or None: a forward pass that also keeps what makes gradients
            cheap.
        from_kept: ``(grad, extra, flat) -> {position: gradient}`` for the gradients that ``keep`` has made cheap.
        kept_backward: ``(grad, extra, flat, options, needs) -> gradients``, all of them by one kernel, for plain
            tensors outside of every transform.
        flops: ``(shapes of the tensor arguments) -> int``, multiplications and additions of the forward pass.
    """

    name: str
    schema: str
    groups: Sequence[Sequence[str]]
    vanishing: dict[int, Sequence[str]] = field(default_factory=dict)
    axes: Mapping[str, tuple[int | None, int | None, int | None]] = field(default_factory=dict)
    promote: Callable[[list[Tensor]], list[Tensor]] = None  # type: ignore[assignment]
    keep: Callable | None = None
    from_kept: Callable | None = None
    kept_backward: Callable | None = None
    flops: Callable | None = None

    def __post_init__(self) -> None:
        arguments = [text.rsplit(" ", 1) for text in self.schema.strip("()").split(", ")]
        self.arguments = [Argument(name, kind == "Tensor[]") for kind, name in arguments if kind.startswith("Tensor")]
        self.count = len(self.arguments)
        self.images = [a.name for a in self.arguments].index("images")
        needs = [f"int[] need_{a.name}" if a.is_list else f"bool need_{a.name}" for a in self.arguments]
        self.forward_schema = f"{self.schema} -> Tensor"
        self.backward_schema = f"(Tensor grad, {self.schema.strip('()')}, {', '.join(needs)}) -> Tensor[]"
        # By argument: its group, and what is left out when its group is exchanged.
        names = [a.name for a in self.arguments]
        self.group_arguments = [[names.index(name) for name in group] for group in self.groups]
        self.vanishing_arguments = {g: [names.index(n) for n in who] for g, who in self.vanishing.items()}
        self.shared_arguments = {names.index(name) for name, own in self.axes.items() if own[0] is None}

    # --- arguments, flat and nested --------------------------------------------------------------------------------

    def flat(self, arguments: Sequence) -> tuple[list[Tensor], tuple[int, ...]]:
        """Return the tensors of all arguments in one flat list, and each argument's first and last position in it."""
        tensors: list[Tensor] = []
        ends = []
        for argument, value in zip(self.arguments, arguments, strict=False):
            if argument.is_list:
                tensors += value
            else:
                tensors.append(value)
            ends.append(len(tensors))
        return tensors, tuple(ends)

    def nested(self, flat: Sequence, ends: Sequence[int], one: type = list) -> list:
        """Return a flat list of values as the dispatcher takes them, with lists where arguments are lists."""
        start, values = 0, []
        for argument, end in zip(self.arguments, ends, strict=True):
            values.append([int(v) if one is int else v for v in flat[start:end]] if argument.is_list else flat[start])
            start = end
        return values

    def positions(self, arguments: Sequence[int], ends: Sequence[int]) -> list[int]:
        return [p for a in arguments for p in range(ends[a - 1] if a else 0, ends[a])]

    def image(self, ends: Sequence[int]) -> int:
        """Return the position of the images, which always have a batch."""
        return ends[self.images] - 1

    def shared_positions(self, ends: Sequence[int]) -> list[int]:
        return self.positions(sorted(self.shared_arguments), ends)

    # --- the two operators, on flat tensors ------------------------------------------------------------------------

    def run_forward(self, op, flat: Sequence[Tensor], ends, options) -> Tensor:
        return op(*self.nested(flat, ends), *options)

    def run_backward(self, op, grad: Tensor, flat: Sequence[Tensor], ends, options, needs) -> list[Tensor]:
        return op(grad, *self.nested(flat, ends), *options, *self.nested([bool(n) for n in needs], ends, int))

    # --- linearity -------------------------------------------------------------------------------------------------

    def exchanges(self, flat: Sequence[Tensor], ends, changes: Sequence[Tensor | None]):
        """Yield for each group with a change: the tensors with it in place, and positions that drop out."""
        for number, arguments in enumerate(self.group_arguments):
            positions = self.positions(arguments, ends)
            if all(changes[p] is None for p in positions):
                continue
            gone = self.positions(self.vanishing_arguments.get(number, ()), ends)
            exchanged = list(flat)
            for p in positions:
                change = changes[p]
                exchanged[p] = torch.zeros_like(flat[p]) if change is None else change
            for p in gone:
                exchanged[p] = torch.zeros_like(flat[p])
            yield exchanged, {*positions, *gone}

    def forward_tangent(self, op, flat, ends, options, tangents) -> Tensor | None:
        total = None
        for exchanged, _ in self.exchanges(flat, ends, tangents):
            total = _add(total, self.run_forward(op, exchanged, ends, options))
        return total

    def backward_tangents(self, op, grad, flat, ends, options, needs, grad_tangent, tangents) -> list[Tensor | None]:
        totals: list[Tensor | None] = [None] * len(flat)

        def add(terms: Sequence[Tensor], wanted: Sequence[bool]) -> None:
            for p, (term, want) in enumerate(zip(terms, wanted, strict=True)):
                if want:
                    totals[p] = _add(totals[p], term)

        if grad_tangent is not None:
            add(self.run_backward(op, grad_tangent, flat, ends, options, needs), needs)
        for exchanged, gone in self.exchanges(flat, ends, tangents):
            wanted = [n and p not in gone for p, n in enumerate(needs)]
            if any(wanted):
                add(self.run_backward(op, grad, exchanged, ends, options, wanted), wanted)
        return totals

    def backward_gradients(self, forward_op, op, grad, flat, ends, options, computed, cotangents, needs) -> list:
        """Return the gradients of the backward operator in grad and in the tensors."""
        cotangents = [c if did else None for c, did in zip(cotangents, computed, strict=True)]
        need_grad, *need = needs
        total: Tensor | None = None
        totals: list[Tensor | None] = [None] * len(flat)
        for exchanged, gone in self.exchanges(flat, ends, cotangents):
            if need_grad:
                total = _add(total, self.run_forward(forward_op, exchanged, ends, options))
            wanted = [n and p not in gone for p, n in enumerate(need)]
            if any(wanted):
                terms = self.run_backward(op, grad, exchanged, ends, options, wanted)
                totals = [_add(t, x) if w else t for t, x, w in zip(totals, terms, wanted, strict=True)]
        return [total, *totals]

    # --- vmap ------------------------------------------------------------------------------------------------------

    def map_forward(self, op, size, dims, flat, ends, options) -> Tensor:
        if size == 0:
            batch, _, *rest = _sample_shape(dims[self.image(ends)], flat[self.image(ends)])
            return flat[self.image(ends)].new_empty((0, batch, *rest), dtype=result_dtype(self, flat, ends))
        if any(dims[p] is not None for p in self.shared_positions(ends)):
            return torch.stack([self.run_forward(op, one, ends, options) for one in _slices(size, dims, flat)])
        merged = self.merged(size, dims, flat, ends)
        return self.run_forward(op, merged, ends, options).unflatten(0, (size, self.batch(dims, flat, ends)))

    def map_backward(self, op, size, grad_dim, dims, grad, flat, ends, options, needs) -> list[Tensor]:
        if size == 0:
            shapes = [_sample_shape(d, t) if n else [0] for d, t, n in zip(dims, flat, needs, strict=True)]
            return [t.new_empty((0, *shape)) for t, shape in zip(flat, shapes, strict=True)]
        shared = self.shared_positions(ends)
        if any(dims[p] is not None or needs[p] for p in shared):  # sums over the batch, which must not mix samples
            ones = _slices(size, [grad_dim, *dims], [grad, *flat])
            all_grads = [self.run_backward(op, g, one, ends, options, needs) for g, *one in ones]
            return [torch.stack(grads) for grads in zip(*all_grads, strict=True)]
        merged = self.merged(size, dims, flat, ends)
        (front,) = _merged(size, [grad_dim], [grad])
        grads = self.run_backward(op, front, merged, ends, options, needs)
        batch = self.batch(dims, flat, ends)
        return [g.unflatten(0, (size, batch)) if n else g.expand(size, 0) for g, n in zip(grads, needs, strict=True)]

    def batch(self, dims, flat, ends) -> int:
        """Return the batch of one sample."""
        return _sample_shape(dims[self.image(ends)], flat[self.image(ends)])[0]

    def merged(self, size, dims, flat, ends) -> list[Tensor]:
        """Return the tensors with the mapped axis joined to the batch."""
        shared = set(self.shared_positions(ends))
        own = [p for p in range(len(flat)) if p not in shared]
        joined = dict(zip(own, _merged(size, [dims[p] for p in own], [flat[p] for p in own]), strict=True))
        return [joined.get(p, t) for p, t in enumerate(flat)]


def _add(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _merged(size: int, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    fronts = [
        t.unsqueeze(0).expand(size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip(tensors, dims, strict=True)
    ]
    return [front.flatten(0, 1) for front in fronts]


def _sample_shape(dim: int | None, tensor: Tensor) -> list[int]:
    return [size for axis, size in enumerate(tensor.shape) if axis != dim]


def _slices(size: int, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the arguments of each sample's call."""
    columns = [[t] * size if d is None else t.unbind(d) for t, d in zip(tensors, dims, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


# --- autograd functions ----------------------------------------------------------------------------------------------
#
# Each operator has two: one that torch.func understands, and a plain one, which is cheaper to call, for all else.


def _is_plain(tensor: Tensor) -> bool:
    """Return whether nothing differentiates, maps or watches what is computed from a tensor now."""
    return not (
        torch.is_grad_enabled()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or type(tensor) not in PLAIN_TYPES
        or torch._C._functorch.is_legacy_batchedtensor(tensor)
    )


class _ForwardRules:
    spec: LinearOperator
    op: torch._ops.OpOverload
    backward_op: torch._ops.OpOverload

    @classmethod
    def gradients(cls, ctx, grad):
        needs = ctx.needs_input_grad[2:]
        if grad is None or not any(needs):
            return (None,) * (2 + len(needs))
        flat = ctx.saved_tensors
        found: dict[int, Tensor] = {}
        kept = getattr(ctx, "kept", 0)
        if kept:
            flat, extra = flat[:-1], flat[-1]
            if cls.spec.kept_backward is not None and _is_plain(grad):
                with torch._C._AutoDispatchBelowAutograd():
                    direct = cls.spec.kept_backward(grad, extra, flat, ctx.options, needs)
                return None, None, *(g if n else None for g, n in zip(direct, needs, strict=True))
            # With gradients enabled, the gradients' own derivatives need the operator.
            if cls.spec.from_kept is not None and not torch.is_grad_enabled():
                found = cls.spec.from_kept(grad, extra, flat)
        asked = [n and p not in found for p, n in enumerate(needs)]
        grads: Sequence[Tensor | None] = [None] * len(flat)
        if any(asked):
            op = functools.partial(call, cls.backward_op, [grad, *flat])
            grads = cls.spec.run_backward(op, grad, flat, ctx.ends, ctx.options, asked)
        return None, None, *(found.get(p, g) if n else None for p, (g, n) in enumerate(zip(grads, needs, strict=True)))

    @classmethod
    def tangent(cls, ctx, flat, tangents):
        return cls.spec.forward_tangent(cls.op, flat, ctx.ends, ctx.options, tangents)


class _BackwardRules(_ForwardRules):
    @classmethod
    def gradients(cls, ctx, cotangents):
        grad, *flat = ctx.saved_tensors
        grads = cls.spec.backward_gradients(
            cls.op, cls.backward_op, grad, flat, ctx.ends, ctx.options, ctx.needs, cotangents, ctx.needs_input_grad[3:]
        )
        return None, None, None, *grads

    @classmethod
    def tangent(cls, ctx, saved, tangents):
        grad, *flat = saved
        grad_tangent, *others = tangents
        found = cls.spec.backward_tangents(
            cls.backward_op, grad, flat, ctx.ends, ctx.options, ctx.needs, grad_tangent, others
        )
        return tuple(
            t if t is not None else torch.zeros_like(x) if n else x.new_empty(0)
            for t, x, n in zip(found, flat, ctx.needs, strict=True)
        )


def _save(ctx, ends, options, tensors, extra=()) -> None:
    ctx.ends, ctx.options = ends, options
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *extra)
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(*tensors)


def _primals(tensors: Sequence[Tensor]) -> list[Tensor]:
    # forward_ad.unpack_dual does nothing while a graph is traced; torch.func has only the level 0.
    return [torch._VF._unpack_dual(t, level=0)[0] for t in tensors]


def _forward_functions(spec: LinearOperator, op, backward_op) -> tuple[type[Function], type[Function]]:
    def run(ends, options, flat):
        with torch._C._AutoDispatchBelowAutograd():
            return spec.run_forward(op, flat, ends, options)

    class Plain(_ForwardRules, Function):
        @staticmethod
        def forward(ctx, ends, options, *flat):
            kept = None
            # Whatever watches the dispatcher (tracers, counters) must see one operator; derivatives in both modes at
            # once and other tensor types, such as sharded ones, need that too. Checkpoints repeat the forward pass,
            # perhaps watched only once, and both passes must save the same tensors.
            seen = (
                forward_ad._current_level >= 0
                or torch._C._len_torch_dispatch_stack() > 0
                or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
            )
            if spec.keep is not None and not seen and all(type(t) in PLAIN_TYPES for t in flat):
                with torch._C._AutoDispatchBelowAutograd():
                    kept = spec.keep(flat, ends, options, ctx.needs_input_grad[2:])
            ctx.kept = kept is not None
            out, *extra = kept or (run(ends, options, flat),)
            _save(ctx, ends, options, flat, extra)
            return out

        @staticmethod
        def backward(ctx, grad):
            return Plain.gradients(ctx, grad)

        @staticmethod
        def jvp(ctx, ends, options, *tangents):
            return Plain.tangent(ctx, ctx.saved_tensors, tangents)

    class Functional(_ForwardRules, Function):
        @staticmethod
        def forward(ends, options, *flat):
            return run(ends, options, flat)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ends, options, *flat = inputs
            _save(ctx, ends, options, flat)
            ctx.save_for_forward(*flat)

        @staticmethod
        def backward(ctx, grad):
            return Functional.gradients(ctx, grad)

        @staticmethod
        def jvp(ctx, ends, options, *tangents):
            with forward_mode_inside():
                return Functional.tangent(ctx, _primals(ctx.saved_tensors), tangents)

        @staticmethod
        def vmap(info, in_dims, ends, options, *flat):
            return spec.map_forward(op, info.batch_size, in_dims[2:], flat, ends, options), 0

    for made in (Plain, Functional):
        made.spec, made.op, made.backward_op, made.__name__ = spec, op, backward_op, spec.name
    return Plain, Functional


def _backward_functions(spec: LinearOperator, op, backward_op) -> tuple[type[Function], type[Function]]:
    def run(ends, options, needs, grad, flat):
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(spec.run_backward(backward_op, grad, flat, ends, options, needs))

    class Plain(_BackwardRules, Function):
        @staticmethod
        def forward(ctx, ends, options, needs, grad, *flat):
            ctx.needs = needs
            _save(ctx, ends, options, (grad, *flat))
            return run(ends, options, needs, grad, flat)

        @staticmethod
        def backward(ctx, *cotangents):
            return Plain.gradients(ctx, cotangents)

        @staticmethod
        def jvp(ctx, ends, options, needs, *tangents):
            return Plain.tangent(ctx, ctx.saved_tensors, tangents)

    class Functional(_BackwardRules, Function):
        @staticmethod
        def forward(ends, options, needs, grad, *flat):
            return run(ends, options, needs, grad, flat)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ends, options, ctx.needs, *tensors = inputs
            _save(ctx, ends, options, tensors)
            ctx.save_for_forward(*tensors)

        @staticmethod
        def backward(ctx, *cotangents):
            return Functional.gradients(ctx, cotangents)

        @staticmethod
        def jvp(ctx, ends, options, needs, *tangents):
            with forward_mode_inside():
                return Functional.tangent(ctx, _primals(ctx.saved_tensors), tangents)

        @staticmethod
        def vmap(info, in_dims, ends, options, needs, grad, *flat):
            grads = spec.map_backward(
                backward_op, info.batch_size, in_dims[3], in_dims[4:], grad, flat, ends, options, needs
            )
            return tuple(grads), (0,) * len(grads)

    for made in (Plain, Functional):
        made.spec, made.op, made.backward_op, made.__name__ = spec, op, backward_op, f"{spec.name}_backward"
    return Plain, Functional


# --- dispatcher ------------------------------------------------------------------------------------------------------


def _register_transforms(name: str, op, plain: type[Function], functional: type[Function], split) -> None:
    """Register derivatives and vmap; ``split`` cuts the dispatcher's arguments into those of the functions."""
    gives_list = op._schema.returns[0].type.kind() == "ListType"

    def autograd(keyset, *arguments):
        if torch._C._len_torch_dispatch_stack():
            _tell_flop_counters()
        if forward_ad._current_level >= 0 or (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
            result = plain.apply(*split(arguments))
            return list(result) if gives_list else result
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & _BELOW_AUTOGRAD, *arguments)

    if not gives_list:
        direct_autograd[op] = lambda *arguments: plain.apply(*split(arguments))

    def transforms(*arguments):
        from torch._functorch.autograd_function import custom_function_call
        from torch._functorch.pyfunctorch import TransformType, retrieve_current_functorch_interpreter

        interpreter: Any = retrieve_current_functorch_interpreter()
        if interpreter.key() == TransformType.Functionalize:
            return _functionalized(interpreter, op, arguments)
        _functionalize_below(custom_function_call, TransformType.Functionalize)
        result = custom_function_call(functional, *split(arguments))
        return list(result) if gives_list else result

    def legacy_vmap(*arguments):
        *rest, first = split(arguments, tensors_last=True)
        return _legacy_vmap(functional, rest, first, gives_list)

    implement(name, autograd, "Autograd", with_keyset=True)
    implement(name, transforms, "FuncTorchDynamicLayerFrontMode")
    implement(name, legacy_vmap, "Batched")


def _functionalized(interpreter, run: Callable, arguments: tuple):
    from torch._subclasses.functional_tensor import FunctorchFunctionalizeAPI

    api = FunctorchFunctionalizeAPI(interpreter)
    plain_arguments = api.unwrap_tensors(arguments)
    with api.redispatch_to_next():
        return api.wrap_tensors(run(*plain_arguments))


def _functionalize_below(call, key) -> None:
    """Let functions of this file pass through ``functionalize`` below other transforms, where torch has no rule."""
    torchs_rule = call.functorch_table[key]
    if getattr(torchs_rule, "of_ffmef", False):
        return

    def rule(interpreter, function, *arguments):
        if not issubclass(function, _ForwardRules):
            return torchs_rule(interpreter, function, *arguments)
        return _functionalized(interpreter, functools.partial(call, function), arguments)

    rule.of_ffmef = True  # type: ignore[attr-defined]
    call.functorch_table[key] = rule


def _legacy_vmap(functional: type[Function], rest: Sequence, tensors: Sequence[Tensor], gives_list: bool):
    """Map over the innermost level of torch.autograd's own vmap, which ignores the vmap rules of extensions."""
    for level in reversed(range(1, _LEGACY_LEVELS)):
        # A tensor that is not mapped at this level gets a new axis of the given size, 0.
        fronts = [torch._remove_batch_dim(t, level, 0, 0) for t in tensors]
        size = max(front.shape[0] for front in fronts)
        if size > 0:
            break
    dims = [0 if front.shape[0] else None for front in fronts]
    given = [t if d is None else front for t, d, front in zip(tensors, dims, fronts, strict=True)]
    info = torch._functorch.autograd_function.VmapInfo(size, "error")
    result, _ = functional.vmap(info, (*(None for _ in rest), *dims), *rest, *given)
    if not gives_list:
        return torch._add_batch_dim(result, 0, level)
    return [torch._add_batch_dim(r, 0, level) for r in result]


def _register_one(spec: LinearOperator, name: str) -> None:
    op, backward_op = operator(name), operator(f"{name}_backward")
    count = spec.count
    for one in (op, backward_op):  # the native library cannot say so: its interface is that of torch 2.11
        one._tags = [*one._tags, torch.Tag.pt2_compliant_tag]

    def split_forward(arguments, tensors_last=False):
        flat, ends = spec.flat(arguments)
        head = ends, tuple(arguments[count:])
        return (*head, flat) if tensors_last else (*head, *flat)

    def split_backward(arguments, tensors_last=False):
        grad, *arguments = arguments
        flat, ends = spec.flat(arguments)
        rest = arguments[count:]
        options, flags = tuple(rest[: -spec.count]), rest[-spec.count :]
        needs = tuple(bool(n) for flag in flags for n in (flag if isinstance(flag, (list, tuple)) else (flag,)))
        head = ends, options, needs
        return (*head, [grad, *flat]) if tensors_last else (*head, grad, *flat)

    def fake_forward(*arguments):
        flat, ends = spec.flat(arguments)
        images = arguments[spec.images]
        return images.new_empty(images.shape[:1] + images.shape[2:], dtype=result_dtype(spec, flat, ends))

    def fake_backward(*arguments):
        _, _, needs, (_, *flat) = split_backward(arguments, tensors_last=True)
        return [t.new_empty(t.shape if n else (0,)) for t, n in zip(flat, needs, strict=True)]

    torch.library.register_fake(f"ffmef::{name}", fake_forward, lib=library)
    torch.library.register_fake(f"ffmef::{name}_backward", fake_backward, lib=library)
    _register_transforms(name, op, *_forward_functions(spec, op, backward_op), split_forward)
    _register_transforms(f"{name}_backward", backward_op, *_backward_functions(spec, op, backward_op), split_backward)
    for device in ("cpu", "cuda"):
        implement(name, _autocast(spec, op, device), f"Autocast{device.upper()}")
    if spec.flops is not None:
        _count_flops(spec, spec.flops, op, backward_op)


def result_dtype(spec: LinearOperator, flat: Sequence[Tensor], ends: Sequence[int]) -> torch.dtype:
    """Return the widest dtype among the tensors that have a batch axis."""
    shared = set(spec.shared_positions(ends))
    dtype = flat[spec.image(ends)].dtype
    for p, tensor in enumerate(flat):
        if p not in shared:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _autocast(spec: LinearOperator, op, device: str):
    def promoted(*arguments):
        flat, ends = spec.flat(arguments)
        with torch.autocast(device, enabled=False):
            return op(*spec.nested(spec.promote(flat), ends), *arguments[spec.count :])

    return promoted


def promote_all(tensors: list[Tensor]) -> list[Tensor]:
    """Cast to the widest dtype among the tensors, as autocast does for operators with several tensors."""
    wide = tensors[0].dtype
    for tensor in tensors[1:]:
        wide = torch.promote_types(wide, tensor.dtype)
    return [tensor.to(wide) for tensor in tensors]


_flop_formulas: dict = {}


def _count_flops(spec: LinearOperator, flops: Callable, op, backward_op) -> None:
    """Keep the cost of a call for torch.utils.flop_counter; each gradient that is needed costs a forward pass."""

    def forward(*shapes, **_):
        return flops(*shapes[: spec.count])

    def backward(grad_shape, *shapes, **_):
        flags = shapes[-spec.count :]
        passes = sum(any(flag) if isinstance(flag, (list, tuple)) else bool(flag) for flag in flags)
        return passes * flops(*shapes[: spec.count])

    _flop_formulas[op.overloadpacket] = forward
    _flop_formulas[backward_op.overloadpacket] = backward


def _tell_flop_counters() -> None:
    """Give the formulas to an active counter. Doing so at import would import triton, which takes half a second."""
    module = sys.modules.get("torch.utils.flop_counter")
    if module is None:
        return
    for packet, formula in _flop_formulas.items():
        if packet not in module.flop_registry:
            module.register_flop_formula(packet)(formula)
    for counter in flop_counters():
        for packet in _flop_formulas:
            counter.flop_registry.setdefault(packet, module.flop_registry[packet])


def register(
    spec: LinearOperator,
    *,
    reference: Callable,
    reference_backward: Callable,
    kernels: Mapping[str, tuple[Callable | None, Callable]],
    triton: tuple[Callable, Callable],
) -> None:
    """Define the operator and its variant that always runs Triton, with everything that torch asks of them.

    Args:
        spec: the operator.
        reference: the forward pass in plain torch, which runs on devices without a kernel and says so once.
        reference_backward: its gradients, nested as the arguments are.
        kernels: forward and backward by dispatch key, "CPU" or "CUDA", where the compiled library lacks them (None
            for a forward pass that it has).
        triton: forward and backward in Triton.
    """
    define(spec.name + spec.forward_schema)
    define(f"{spec.name}_backward{spec.backward_schema}")
    library.define(f"{spec.name}_triton{spec.forward_schema}", tags=torch.Tag.pt2_compliant_tag)
    library.define(f"{spec.name}_triton_backward{spec.backward_schema}", tags=torch.Tag.pt2_compliant_tag)
    fallback(spec.name, reference)
    fallback(f"{spec.name}_backward", flattened(reference_backward))
    for key, (forward, backward) in kernels.items():
        if forward is not None:
            implement(spec.name, forward, key)
        implement(f"{spec.name}_backward", flattened(backward), key)
    for key in ("CPU", "CUDA"):
        implement(f"{spec.name}_triton", triton[0], key)
        implement(f"{spec.name}_triton_backward", flattened(triton[1]), key)
    for name in (spec.name, f"{spec.name}_triton"):
        _register_one(spec, name)
        after_import("torch.distributed.tensor", functools.partial(_distributed.register, spec, name))


def flattened(backward: Callable) -> Callable:
    """Return ``backward`` with its gradients in one flat list, as the dispatcher's operator returns them."""

    def run(*arguments):
        return [g for part in backward(*arguments) for g in (part if isinstance(part, (list, tuple)) else (part,))]

    return run


def triton_kernel(module: str, name: str) -> Callable:
    """Return a function of ``ffmef.kernels.module``, imported at the first call, because importing triton is slow."""

    def launch(*arguments):
        from importlib import import_module

        return getattr(import_module(f"ffmef.kernels.{module}"), name)(*arguments)

    return launch
