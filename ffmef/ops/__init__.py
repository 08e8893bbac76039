"""Operators: one function each, differentiable, for CPU and GPU."""

from ffmef.ops import _onnx_hook, statistics
from ffmef.ops._backends import backends
from ffmef.ops.adaptive_fuse import adaptive_fuse
from ffmef.ops.ffmef_forward import ffmef_forward
from ffmef.ops.norm_activation import norm_activation
from ffmef.ops.predict_and_fuse import predict_and_fuse
from ffmef.ops.pyramid_exposures import pyramid_exposures, pyramid_luminance
from ffmef.ops.pyramid_fuse import pyramid_fuse
from ffmef.ops.thin_convolution import thin_convolution

__all__ = [
    "adaptive_fuse",
    "backends",
    "ffmef_forward",
    "norm_activation",
    "predict_and_fuse",
    "pyramid_exposures",
    "pyramid_fuse",
    "pyramid_luminance",
    "thin_convolution",
]

_onnx_hook.install()
statistics.declare_all()
