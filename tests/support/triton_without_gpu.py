"""A driver for Triton of a GPU that is not there: kernels are compiled for sm_90 and bound as for a launch, not run.

Importing this module makes it Triton's driver in this process. Compilation, specialisation and what a launch costs the
CPU are Triton's own. Only the last call, into CUDA's driver, is left out.
"""

from __future__ import annotations

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import GPUDriver
from triton.runtime import driver

launched: list[tuple[str, object, tuple[int, int, int], tuple]] = []  # name, function, grid, arguments


class _Utils:
    """What Triton asks of a GPU: an H100's limits, and modules that are numbered instead of loaded."""

    def __init__(self) -> None:
        self.loaded = 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "max_num_regs": 65536, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        self.loaded += 1
        return self.loaded, self.loaded, 0, 0, 1024

    def unload_module(self, module: int) -> None:
        """Does nothing, because nothing was loaded."""


class _Launcher:
    def __init__(self, source: object, metadata: object) -> None:
        self.name = metadata.name

    def __call__(self, across: int, down: int, deep: int, stream: int, function: object, *rest: object) -> None:
        launched.append((self.name, function, (across, down, deep), rest))


class Driver(GPUDriver):
    """An sm_90 whose tensors are the CPU's."""

    def __init__(self) -> None:
        self.utils, self.launcher_cls = _Utils(), _Launcher
        self.get_device_capability = lambda device=0: (9, 0)
        self.get_current_stream = lambda device=0: 0
        self.get_current_device = lambda: 0
        self.set_current_device = lambda device: None

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

    def get_benchmarker(self):
        def benchmark(call, quantiles=None, **rest):
            call()
            return [1.0, 1.0, 1.0]

        return benchmark

    @staticmethod
    def is_active() -> bool:
        return True


driver.set_active(Driver())
