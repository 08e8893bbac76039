"""The whole FFMEF network in one operator, for inference on CPU and GPU; docs/engine.md explains how it works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ffmef import _loader
from ffmef.ops._backends import Kernels, check_backend, check_name, declare
from ffmef.ops.library import define, implement, library, operator, refuse_derivatives

CHANNELS = (4, 8, 16)
CUDA_CHANNELS = 4
KERNEL_SIZES = ((1,), (1, 3), (3, 5), (1, 3, 5), (1, 3, 5, 7))


def no_kernel(channels: int, kernel_sizes: Sequence[int]) -> str | None:
    """Return why no kernel exists for this architecture, or None.

    Example:
        >>> no_kernel(4, (1, 3, 5)) is None
        True
    """
    if channels not in CHANNELS:
        return f"channels must be 4, 8 or 16, got {channels}"
    if tuple(kernel_sizes) not in KERNEL_SIZES:
        return f"kernel_sizes must be one of {', '.join(map(str, KERNEL_SIZES))}, got {tuple(kernel_sizes)}"
    return None


_kernels = Kernels(
    float32=True,
    autocast=False,
    derivatives=False,
    sizes=no_kernel,
    limits=f"FFMEF of {', '.join(map(str, CHANNELS))} channels and filter sets "
    + ", ".join("{" + ",".join(map(str, sizes)) + "}" for sizes in KERNEL_SIZES),
)


def _not_in_cuda(channels: int, kernel_sizes: Sequence[int]) -> str | None:
    if channels != CUDA_CHANNELS:
        return f"channels must be {CUDA_CHANNELS}, got {channels}"
    return no_kernel(channels, kernel_sizes)


_cuda_kernels = replace(
    _kernels,
    entry="ffmef_forward_cuda",
    sizes=_not_in_cuda,
    limits=f"FFMEF of {CUDA_CHANNELS} channels and the same filter sets",
)
declare("ffmef_forward", cpu=_kernels, triton=_kernels, cuda=_cuda_kernels)


def backend_of(device: torch.device, channels: int = CUDA_CHANNELS) -> str:
    """Return the backend that computes where the tensors are; on GPUs that is "triton" where "cuda" cannot run."""
    if device.type != "cuda":
        return "cpu"
    return "cuda" if channels == CUDA_CHANNELS and _has_cuda() else "triton"


def _has_cuda() -> bool:
    return _loader.cuda_missing is None and hasattr(torch.ops.ffmef, "ffmef_forward_cuda")


def ffmef_forward(
    luminance: Tensor,
    parameters: Sequence[Tensor],
    channels: int = 4,
    kernel_sizes: Sequence[int] = (1, 3, 5),
    *,
    backend: str | None = None,
) -> Tensor:
    """Fuse two luminance images with the FFMEF network; its filters and k*k maps never reach memory.

    Equal to :class:`ffmef.models.FFMEF` in evaluation mode (CVPR workshops 2023, section 3), which calls this
    operator automatically where it can.

    Args:
        luminance: (B, 2, H, W) in [0, 1], float32, on the CPU or a GPU, any strides; the darker exposure first.
        parameters: those of ``model.parameters()``, in that order; float32.
        channels: c of the network: 4, 8 or 16.
        kernel_sizes: one of the filter sets of the paper's table 2.
        backend: "cpu", "cuda" (4 channels only) or "triton"; None selects the best on the tensors' device.

    Returns:
        (B, 1, H, W), unclamped. The bits are the same from run to run and do not depend on the number of threads;
        on CPUs they depend on the instruction set, on GPUs on the model of GPU and the backend.

    Raises:
        ValueError: shapes or the architecture are not supported; the message names the argument, the rule and the
            value.
        RuntimeError: the operator cannot run on these tensors here (backend, device, dtype, gradients), or the
            parameters do not fit.

    Example:
        >>> import torch, ffmef
        >>> model = ffmef.models.FFMEF().eval()
        >>> with torch.inference_mode():
        ...     ffmef_forward(torch.rand(1, 2, 12, 16), list(model.parameters())).shape
        torch.Size([1, 1, 12, 16])
    """
    parameters = list(parameters)
    if luminance.dim() != 4 or luminance.shape[1] != 2:
        raise ValueError(f"luminance must be (B, 2, H, W), got shape {tuple(luminance.shape)}")
    if luminance.shape[2] * luminance.shape[3] == 1:
        raise ValueError("luminance must have more than one pixel for InstanceNorm, got 1 x 1")
    check_name(backend)
    if (reason := no_kernel(channels, kernel_sizes)) is not None:
        raise ValueError(reason)
    chosen = backend or backend_of(luminance.device, channels)
    sizes = {"channels": channels, "kernel_sizes": kernel_sizes}
    check_backend("ffmef_forward", chosen, luminance=luminance, parameters=parameters, **sizes)
    return operator("ffmef_forward_triton" if backend == "triton" else "ffmef_forward")(
        luminance, parameters, channels, list(kernel_sizes)
    )


def _fake(luminance, parameters, channels, kernel_sizes):
    return luminance.new_empty((luminance.shape[0], 1, luminance.shape[2], luminance.shape[3]))


def _triton(*arguments):
    # Imported at the first call: importing triton takes longer than importing ffmef.
    from ffmef.kernels import ffmef_forward as kernels

    return kernels.forward(*arguments)


def _on_gpu(luminance, parameters, channels, kernel_sizes):
    if backend_of(luminance.device, channels) == "cuda":
        return operator("ffmef_forward_cuda")(luminance, parameters, channels, kernel_sizes)
    return _triton(luminance, parameters, channels, kernel_sizes)


def _defined(luminance, parameters, channels, kernel_sizes):
    """Run the model's definition with these parameters."""
    from ffmef.models import FFMEF
    from ffmef.models.shapes import shapes_only

    with shapes_only():
        model = FFMEF(channels, tuple(kernel_sizes), backend="eager").eval()
    names = [name for name, _ in model.named_parameters()]
    return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (luminance,))


_SCHEMA = "(Tensor luminance, Tensor[] parameters, int channels, int[] kernel_sizes) -> Tensor"
define("ffmef_forward" + _SCHEMA)
library.define("ffmef_forward_triton" + _SCHEMA)
implement("ffmef_forward", _on_gpu, "CUDA")
for _key in ("CPU", "CUDA"):
    implement("ffmef_forward_triton", _triton, _key)
for _name in ("ffmef_forward", "ffmef_forward_triton"):
    torch.library.register_fake(f"ffmef::{_name}", _fake, lib=library)
    refuse_derivatives(_name, "set the model's backend to 'eager'", counted=_defined)
