"""Print versions, backends with the reasons of those that are missing, and bundled weights."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ffmef.ops._backends import Kernels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``ffmef info`` takes no arguments."""


def run(args: argparse.Namespace) -> int:
    print("\n".join(lines()))
    return 0


def lines() -> list[str]:
    """Return the report, line by line."""
    import torch

    from ffmef import _loader, models, ops, picture
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
    report.append(f"fusion without torch: {picture.missing or 'available'}")
    report.append("backends:")
    report += [
        f"  {name:<10} {'available' if reason is None else 'missing: ' + reason}"
        for name, reason in ops.backends().items()
    ]
    report.append("operators, and the backends whose kernels run here:")
    report += operator_lines()
    report.append(f"weights: {', '.join(models.available()) or 'none bundled'}")
    return report


def operator_lines() -> list[str]:
    """Say which backends have kernels for each operator here, their limits, and why one lacks a kernel.

    Reasons that concern a whole backend are in the list of backends.
    """
    from ffmef.ops import _backends

    general = _backends.backends()
    lines = []
    for operator, kernels in sorted(_backends.declared().items()):
        parts = []
        for name, one in kernels.items():
            reason = _backends.why_not(operator, name)
            if reason is None:
                limits = _limits(one)
                parts.append(f"{name} ({limits})" if limits else name)
            elif reason != general[name]:
                parts.append(f"not {name}: {reason}")
        lines.append(f"  {operator:<17}  {', '.join(parts) or 'none'}")
    return lines


def _limits(kernels: Kernels) -> str:
    facts = {"float32": kernels.float32, "no gradients": not kernels.derivatives, kernels.limits: bool(kernels.limits)}
    return "; ".join(text for text, holds in facts.items() if holds)
