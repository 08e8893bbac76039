"""What every record says about its run: commit, versions, device, threads, instruction set."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def commit() -> dict[str, str | bool | None]:
    """Return the commit that is measured and whether the tree differs from it; None outside a git checkout."""
    head = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "ffmef", "CMakeLists.txt")
    return {"id": head, "time": git("show", "-s", "--format=%cI", "HEAD"), "dirty": bool(changes) if head else None}


def git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@functools.cache
def machine(device: str) -> dict[str, object]:
    """Return the facts of the machine and the software; the host's name is left out on purpose."""
    import cv2
    import numpy
    import psutil

    import ffmef.version

    facts: dict[str, object] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "instruction_set_torch": torch.backends.cpu.get_cpu_capability(),
        "instruction_set_ffmef": native_instruction_set(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "opencv": cv2.__version__,
        "ffmef": ffmef.version.__version__,
        "device": "cpu",
    }
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "device": properties.name,
            "cuda": torch.version.cuda,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "device_memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_bytes": properties.L2_cache_size,
            "tf32": {"cudnn": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
        }
    return facts


def processor_name() -> str:
    """Return the processor's name with its vendor's family and model numbers where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name", platform.processor() or "unknown")
    if {"cpu family", "model"} <= fields.keys():
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def load_average() -> float | None:
    """Return how many processes wanted the processors over the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def native_instruction_set() -> str | None:
    """Return the instruction set that our CPU kernels chose; None where they were not built."""
    try:
        from ffmef import _info
    except ImportError:
        return None
    return _info.isa()
