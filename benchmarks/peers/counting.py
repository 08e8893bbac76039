"""Parameters and multiply-adds of a network, counted without computing anything."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode


def parameter_count(model: torch.nn.Module) -> int:
    """Return the number of scalars among the parameters; buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Return the multiply-adds of the convolutions and matrix products of ``model(*inputs)``.

    Biases, norms, activations and resampling do not count. Both model and inputs may live on the meta device.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(*inputs)
    operations = counter.get_total_flops()
    assert operations % 2 == 0, "the counter reports a multiplication and an addition for each multiply-add"
    return operations // 2
