"""Score fused pictures of a benchmark folder and write a report."""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "dataset",
        metavar="DATASET",
        help="folder of pairs, such as NAME/NAME_A.ext or VI/ and IR/, or a CSV table of files",
    )
    add("-o", "--output", required=True, metavar="DIR", help="folder for the report; a second run continues there")
    add("--task", default="mef", help="mef (default), mff or vif")
    add(
        "--fused", action="append", metavar="DIR",
        help="score these fused pictures: NAME_METHOD.ext, or NAME.ext in a folder named after the method, or a folder "
        "of such folders; repeatable",
    )  # fmt: skip
    add("--weights", action="append", metavar="NAME|PATH", help="fuse with these; repeatable (default: the task's)")
    add(
        "--metrics", metavar="NAME,NAME,...", help="such as QABF,MEF-SSIM; or all (default: those of the paper's table)"
    )
    add(
        "--save-as", default="lossless", metavar="HOW",
        help="lossless (default), or source: with the source's extension, as for published tables",
    )  # fmt: skip
    add("--faults", action="store_true", help="also measure the faults that scores miss (mef; see ffmef.faults)")
    add("--jobs", type=int, default=1, metavar="J", help="processes at a time (default: 1)")
    add("--scheduler", metavar="ADDRESS", help="address of a dask.distributed cluster that scores (extra: cluster)")
    add(
        "--page-pixels",
        type=int,
        default=1024,
        metavar="P",
        help="longest side of pictures in the page (default: 1024)",
    )


def run(args: argparse.Namespace) -> int:
    from ffmef.errors import InputError

    try:
        import jinja2  # noqa: F401
        import scipy  # noqa: F401
        import tqdm  # noqa: F401
    except ImportError as error:
        raise InputError(f"needs {error.name}: pip install 'ffmef[metrics]'") from None

    from ffmef.evaluation import report, runner

    result = runner.evaluate(
        args.dataset,
        args.output,
        task=args.task,
        fused=args.fused,
        weights=args.weights,
        metrics=None if args.metrics is None else [args.metrics],
        save_as=args.save_as,
        faults=args.faults,
        jobs=args.jobs,
        scheduler=args.scheduler,
        page_pixels=args.page_pixels,
        progress=runner.show_progress,
    )
    print(report.markdown(result), end="")
    print(f"\nwrote scores.csv, scores.json, scores.md, scores.tex and report.html to {args.output}")
    for failure in result.failures:
        who = f"{failure.pair} by {failure.method}" if failure.method else failure.pair
        print(f"ffmef evaluate: {who}: {failure.reason}", file=sys.stderr)
    return 1 if result.failures else 0
