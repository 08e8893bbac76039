"""Time the fusion operator at your own shape on every available backend."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from ffmef.commands import MOST_THREADS

if TYPE_CHECKING:
    from ffmef.ops.types import Backend

DTYPES = ("float32", "float64", "bfloat16", "float16")
FLOOR = "floor"
HEADINGS = (
    "provider", "device", "median", "IQR", "share of floor", "GB/s", "peak memory", "launches", "occupancy",
)  # fmt: skip
LEAST_ROUNDS, MOST_ROUNDS = 3, 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--height", type=int, default=551, metavar="H", help="rows of the images (default: 551)")
    parser.add_argument("--width", type=int, default=707, metavar="W", help="columns of the images (default: 707)")
    parser.add_argument("--batch", type=int, default=1, metavar="B", help="batch size (default: 1)")
    parser.add_argument("--images", type=int, default=2, metavar="N", help="images to fuse (default: 2)")
    parser.add_argument("--kernel-sizes", default="1,3,5", metavar="K,K,...", help="odd filter sizes (default: 1,3,5)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="dtype of images and filters (default: float32)"
    )
    parser.add_argument("--backward", action="store_true", help="also compute the gradients of filters and alphas")
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="CPU threads (default: 1)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="time to spend per backend (default: 2)"
    )


def run(args: argparse.Namespace) -> int:
    from ffmef import measure, ops

    for name in ("height", "width", "batch", "images", "threads"):
        require(getattr(args, name) >= 1, f"--{name} must be at least 1, got {getattr(args, name)}")
    require(args.threads <= MOST_THREADS, f"--threads must be at most {MOST_THREADS}, got {args.threads}")
    require(args.seconds > 0, f"--seconds must be positive, got {args.seconds:g}")
    sizes = parse_kernel_sizes(args.kernel_sizes)
    planes = planes_moved(args, sizes)
    moved = planes * args.batch * args.height * args.width * itemsize(args.dtype)
    free = measure.available_memory()
    require(
        free is None or moved < free, f"the tensors need {moved / 2**30:.1f} GiB, free are {(free or 0) / 2**30:.1f}"
    )

    step = "forward and backward to filters and alphas" if args.backward else "forward"
    shape = " x ".join(str(getattr(args, name)) for name in ("batch", "images", "height", "width"))
    print(
        f"adaptive_fuse, {step}: images {shape}, kernel sizes {args.kernel_sizes}, {args.dtype}, threads {args.threads}"
    )
    backends = ops.backends()
    with measure.thread_count(args.threads):
        rows = [
            row for device, names in by_device(backends).items() for row in measured(device, names, args, sizes, moved)
        ]
    print_table([HEADINGS, *rows])
    print(f"{FLOOR}: reading the filters once. GB/s: the least that must be read and written, over the time.")
    if "cuda" in by_device(backends):
        print("launches, occupancy: of one call, by torch's profiler; empty where the driver does not tell.")
    for name, missing in backends.items():
        if missing is not None:
            print(f"{name}: not available: {missing}")
    return 0


def require(condition: bool, message: str) -> None:
    from ffmef.errors import InputError

    if not condition:
        raise InputError(message)


def parse_kernel_sizes(text: str) -> list[int]:
    """Return the odd sizes of a list such as ``1,3,5``."""
    parts = text.split(",")
    require(all(part.strip().isdecimal() for part in parts), f"--kernel-sizes must be like 1,3,5, got {text!r}")
    sizes = [int(part) for part in parts]
    for size in sizes:
        require(size % 2 == 1 and size <= 31, f"--kernel-sizes must be odd and at most 31, got {size}")
    return sizes


def itemsize(dtype: str) -> int:
    import torch

    return getattr(torch, dtype).itemsize


def planes_moved(args: argparse.Namespace, sizes: list[int]) -> int:
    """Return the least number of image-sized planes to read and write.

    Forward: filters and images in, one plane out. Backward: the gradient, the images and one plane per level, saved by
    the forward pass, in; the filters' gradients out.
    """
    taps = args.images * sum(size * size for size in sizes)
    forward = taps + args.images + 1
    return forward + (len(sizes) + 1 + args.images + len(sizes) + taps if args.backward else 0)


def by_device(backends: dict[str, str | None]) -> dict[str, list[str]]:
    """Return the names of the available backends by device."""
    import torch

    devices: dict[str, list[str]] = {}
    for name, missing in backends.items():
        if missing is None:
            on_gpu = name in ("triton", "cuda") and torch.cuda.is_available()
            devices.setdefault("cuda" if on_gpu else "cpu", []).append(name)
    return devices


def measured(
    device: str, names: list[str], args: argparse.Namespace, sizes: list[int], moved: int
) -> list[Sequence[str]]:
    """Time each backend in turn with the floor and return the rows of the table."""
    import statistics

    from ffmef import measure

    images, filters, alphas, gradient = make_tensors(device, args, sizes)
    read = lambda: [weights.detach().sum() for weights in filters]  # noqa: E731
    runs = {FLOOR: read} | {
        name: make_run(cast("Backend", name), images, filters, alphas, gradient, args.backward) for name in names
    }
    clock = measure.clock_for(device, args.threads)
    rows: list[Sequence[str]] = []
    for name, call in runs.items():
        call()
        peak = measure.peak_memory(call, device)
        rounds = measure.rounds_within(args.seconds, measure.seconds(call, device), LEAST_ROUNDS, MOST_ROUNDS)
        own, floor = (timings.of(clock) for timings in measure.take_turns([call, read], rounds, device))
        median, spread = statistics.median(own), measure.interquartile_range(own)
        share = statistics.median(least / time for time, least in zip(own, floor))
        memory = peak["host_bytes" if device == "cpu" else "device_bytes"]
        kernels = measure.gpu_kernels(call, device) or {"launches": None, "occupancy_percent": None}
        rows.append(
            (
                name,
                device,
                f"{median * 1e3:.3f} ms",
                "" if spread is None else f"{spread / median:.1%}",
                "" if name == FLOOR else f"{share:.0%}",
                "" if name == FLOOR else f"{moved / median / 1e9:.1f}",
                f"{memory / 2**20:.1f} MiB" if isinstance(memory, int) else "unknown",
                "" if kernels["launches"] is None else str(kernels["launches"]),
                "" if kernels["occupancy_percent"] is None else f"{kernels['occupancy_percent']:.0f}%",
            )
        )
    return rows


def make_tensors(device: str, args: argparse.Namespace, sizes: list[int]):
    """Return seeded images, filters, alphas and the gradient of the fused image."""
    import torch

    dtype = getattr(torch, args.dtype)
    options = {"device": device, "dtype": dtype, "generator": torch.Generator(device).manual_seed(0)}
    images = torch.rand(args.batch, args.images, args.height, args.width, **options)
    filters = [torch.rand(args.batch, args.images, size * size, args.height, args.width, **options) for size in sizes]
    alphas = torch.full((len(sizes),), 1 / len(sizes), device=device, dtype=dtype)
    gradient = torch.rand(args.batch, args.height, args.width, **options)
    if args.backward:
        for tensor in (*filters, alphas):
            tensor.requires_grad_()
    return images, filters, alphas, gradient


def make_run(backend: Backend, images, filters, alphas, gradient, backward: bool) -> Callable[[], object]:
    import torch

    from ffmef import ops

    def forward():
        return ops.adaptive_fuse(images, filters, alphas, backend=backend)

    return (lambda: torch.autograd.grad(forward(), [*filters, alphas], gradient)) if backward else forward


def print_table(rows: list[Sequence[str]]) -> None:
    """Print rows in aligned columns, without those that are empty below their heading."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        cells = [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
