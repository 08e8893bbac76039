"""Types of arguments that editors can complete and type checkers can check."""

from __future__ import annotations

from typing import Literal, TypeAlias

# In the order of csrc/common/padding.h: the kernels know each mode by its position.
PaddingMode: TypeAlias = Literal["zeros", "replicate", "reflect", "circular"]
"""What lies outside an image, see :func:`ffmef.ops.adaptive_fuse`."""

Backend: TypeAlias = Literal["reference", "cpu", "triton", "cuda"]
"""Which kernels compute, see :func:`ffmef.ops.backends`."""
