"""Print versions, backends with the reasons of those that are missing, and bundled weights."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``ffmef info`` takes no arguments."""


def run(args: argparse.Namespace) -> int:
    print("\n".join(lines()))
    return 0


def lines() -> list[str]:
    """Return the report, line by line."""
    import torch

    from ffmef import _loader, models, ops
    from ffmef.version import __version__

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    report = [
        f"ffmef {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"torch {torch.__version__} (CUDA {torch.version.cuda}), triton {version('triton')}, numpy {version('numpy')}",
        f"threads {torch.get_num_threads()}",
    ]
    if _loader.cpu_missing is None:
        try:
            from ffmef import _info

            report.append(
                f"native library: {_info.compiler}, C++{_info.cxx_standard}, built with torch {_info.torch_headers}, "
                f"instruction set in use {_info.isa()}"
            )
        except ImportError as error:
            report.append(f"native library: loaded; its build facts are missing: {error}")
    report.append("backends:")
    report += [
        f"  {name:<10} {'available' if reason is None else 'missing: ' + reason}"
        for name, reason in ops.backends().items()
    ]
    report.append("engine: " + engine_line())
    report.append(f"weights: {', '.join(models.available()) or 'none bundled'}")
    return report


def engine_line() -> str:
    """Say which networks the whole-network operator can run here."""
    from ffmef.ops.ffmef_forward import CHANNELS, KERNEL_SIZES, unsupported

    names = {"cpu": "the CPU", "cuda": "GPUs"}
    reasons = {name: unsupported(CHANNELS[0], KERNEL_SIZES[0], device) for device, name in names.items()}
    served = [device for device, reason in reasons.items() if reason is None]
    if not served:
        return "eager for every network: " + "; ".join(f"{device}: {reason}" for device, reason in reasons.items())
    sets = ", ".join("{" + ",".join(map(str, sizes)) + "}" for sizes in KERNEL_SIZES)
    channels = ", ".join(map(str, CHANNELS))
    where = " and ".join(served)
    return (
        f"fused on {where} without gradients for FFMEF of {channels} channels and filter sets {sets}; eager otherwise"
    )
