"""Operators: one function each, differentiable, for CPU and GPU."""

from ffmef.ops.adaptive_fuse import adaptive_fuse
from ffmef.ops.ffmef_forward import ffmef_forward
from ffmef.ops.pyramid_fuse import pyramid_fuse
from ffmef.ops.selection import backends

__all__ = ["adaptive_fuse", "backends", "ffmef_forward", "pyramid_fuse"]
