"""Write a network as ONNX, as an exported program, or compiled ahead of time.

The input is luminance (1, N, H, W) in [0, 1], the output the fused luminance (1, 1, H, W), both float32; height and
width are free. Needs ``ffmef[export]`` for ONNX.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffmef import files
from ffmef.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

EXTENSIONS = (".onnx", ".pt2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ffmef export``."""
    parser.add_argument("--weights", required=True, metavar="NAME", help="bundled weights or a weights file")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file to write: .onnx or .pt2")
    parser.add_argument("--count", type=int, default=2, metavar="N", help="pictures to fuse (default: 2)")
    parser.add_argument(
        "--aot",
        action="store_true",
        help="compile FILE.pt2 for this machine by AOTInductor instead of keeping the graph",
    )


def run(args: argparse.Namespace) -> None:
    """Export and, for ONNX, compare with the network where onnxruntime is installed."""
    output = Path(args.output)
    if output.suffix not in EXTENSIONS:
        raise InputError(f"output must end in {' or '.join(EXTENSIONS)}, got {output.name}")
    if args.aot and output.suffix != ".pt2":
        raise InputError(f"output must end in .pt2 with --aot, got {output.name}")
    if not 2 <= args.count <= 100:
        raise InputError(f"count must be from 2 to 100, got {args.count}")
    if not output.parent.is_dir():
        raise InputError(f"output must be in a folder that exists, got {output}")
    from ffmef import models

    model = models.load(args.weights)
    if isinstance(model, models.FFMEF) and args.count != 2:
        raise InputError(f"count must be 2 for the network of {args.weights}, got {args.count}")
    if isinstance(model, models.FocusNet):  # the number of its bands depends on the size of the picture
        raise InputError(f"weights must be of a network that takes free sizes, got those of FocusNet: {args.weights}")
    write = _write_onnx if output.suffix == ".onnx" else _write_compiled if args.aot else _write_program
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / output.name
        said = write(model, args.count, part)
        files.write(output, part.read_bytes())
    print(f"{output}: {said}")


def exported(model: nn.Module, count: int) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Return the example and the options of ``torch.export.export`` and ``torch.onnx.export`` for free sizes."""
    import torch

    # Multiples of 64 would not exercise odd borders.
    example = (torch.rand(1, count, 76, 92),)
    sizes = {2: torch.export.Dim("height", min=16, max=16384), 3: torch.export.Dim("width", min=16, max=16384)}
    return example, {"dynamic_shapes": (sizes,)}


def _write_onnx(model: nn.Module, count: int, path: Path) -> str:
    import torch

    try:
        import ffmef.onnx  # noqa: F401  says what is missing
    except ImportError as error:
        raise InputError(str(error)) from None
    example, options = exported(model, count)
    with torch.no_grad():
        program = torch.onnx.export(
            model, example, dynamo=True, verbose=False, input_names=["luminance"], output_names=["fused"], **options
        )
        assert program is not None  # of dynamo's exporter
        program.save(path)
    try:
        import onnxruntime
    except ImportError:
        return "not compared with the network: onnxruntime is not installed"
    session = onnxruntime.InferenceSession(path)
    luminance = torch.rand(1, count, 101, 83)
    with torch.no_grad():
        expected = model(luminance)
    difference = abs(session.run(None, {"luminance": luminance.numpy()})[0] - expected.numpy()).max()
    if not difference < 1e-3:
        raise RuntimeError(f"onnxruntime differs from the network by {difference:.2g}")
    return f"onnxruntime differs from the network by at most {difference:.1e}"


def _write_program(model: nn.Module, count: int, path: Path) -> str:
    import torch

    example, options = exported(model, count)
    with torch.no_grad():
        torch.export.save(torch.export.export(model, example, **options), path)
    return "load with torch.export.load after import ffmef.ops"


def _write_compiled(model: nn.Module, count: int, path: Path) -> str:
    import torch

    example, options = exported(model, count)
    with torch.no_grad():
        program = torch.export.export(model, example, **options)
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return "load with torch._inductor.aoti_load_package after import ffmef.ops"
