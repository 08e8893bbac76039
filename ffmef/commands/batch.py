"""Fuse the brackets of whole folders, in several processes."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from ffmef import interruption
from ffmef.commands.fuse import add_fusion_arguments, fusion_options, whole_number
from ffmef.errors import InputError, counted, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help="folders of frames, searched with their sub-folders (vif: VI/ and IR/, or NAME_VI and NAME_IR)",
    )
    add(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="folder for the results, NAME_fused.EXT; created if missing",
    )
    add("--extension", default="jpg", metavar="EXT", help="format of the results: jpg (default), png, tif, webp, ...")
    add("--count", metavar="N", help="take N files per bracket, in the order of their names (default: group by EXIF)")
    add(
        "--pattern",
        metavar="REGEX",
        help="group the files whose first regex group is the same, as in '(.+)_(under|over)'",
    )
    add("--gap", default="3", metavar="SECONDS", help="longest time between frames of a bracket (default: 3)")
    add("--dry-run", action="store_true", help="show the plan and write nothing")
    add("--overwrite", action="store_true", help="replace existing results; by default they are kept")
    add(
        "--jobs",
        metavar="J",
        help="processes at a time (default: one per processor, or fewer if memory, or the GPU's, is short)",
    )
    add(
        "--scheduler",
        metavar="ADDRESS",
        help="address of a dask.distributed cluster that does the work (extra: cluster)",
    )
    add_fusion_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ffmef import batch, files, grouping, jobs
    from ffmef.imaging import paths

    if args.scheduler == "":
        raise InputError("--scheduler must be an address, got ''")
    processes = whole_number(args.jobs, "--jobs", 1, 1024)
    options = fusion_options(args)
    if options.fusion["threads"] is None and not args.scheduler:
        options = replace(options, fusion={**options.fusion, "threads": 1})  # many processes instead
    extension = args.extension.removeprefix(".").lower()
    _check_output(args.output, extension, options, jobs)
    folders = paths.expand(args.folders, folders=True)
    count, gap = whole_number(args.count, "--count", 2), _seconds(args.gap)
    if args.task == "vif":
        if count is not None or args.pattern is not None:
            raise InputError("--count and --pattern are for exposures and foci: names say what is infrared")
        plan = grouping.find_pairs(folders, args.output)
    else:
        options_of_groups = {"count": count, "pattern": args.pattern, "gap": gap, "task": args.task}
        plan = grouping.find(folders, args.output, **options_of_groups)
    if not (plan.groups or plan.left or plan.failures):
        raise InputError(f"{', '.join(args.folders)}: no pictures there")
    todo, there = [], 0
    for group in plan.groups:
        target = os.path.abspath(os.path.join(args.output, f"{group.name}.{extension}"))
        frames = tuple(os.path.abspath(frame) for frame in group.frames)
        if os.path.exists(target) and not args.overwrite:
            there += 1
            status = "kept, is there"
        else:
            status = "to be fused"
            todo.append(batch.Job(frames, target, options))
        if args.dry_run:
            names = " ".join(frame.name for frame in group.frames)
            print(printable(f"{group.name}.{extension} ({status}): {names}"))
    if args.dry_run:
        _report(plan.left, plan.failures)
        fused, left = counted(len(todo), "bracket"), counted(len(plan.left), "file")
        print(f"{fused} to be fused, {there} kept, {left} left alone")
        return 1 if plan.failures or not plan.groups else 0
    if todo:
        options = _absolute(options)
        todo = [replace(job, options=options) for job in todo]
        _try_fusion(options)
        slow = None if args.scheduler else jobs.why_slow(options)
        if slow is not None:
            _say(f"remark: {slow}")
        _try_output(args.output)
        for folder in {Path(job.target).parent for job in todo}:
            files.remove_leftovers(folder, of_ended_processes=True)  # a killed run could not remove them
    return _perform(args, plan, todo, there, batch, processes)


def _perform(args, plan, todo, there: int, batch, processes: int | None) -> int:
    failures, done = list(plan.failures), 0
    try:
        outcomes = batch.run(todo, processes=processes, scheduler=args.scheduler, progress=_progress)
        for outcome in outcomes:
            for line in outcome.remarks:
                _say(f"remark: {line}")
            if outcome.failure is None:
                done += 1
            else:
                failures.append((_place(outcome.job.target), outcome.failure.removeprefix(f"{outcome.job.target}: ")))
    except KeyboardInterrupt as error:
        word, status = interruption.outcome(error)
        rest = len(todo) - done - (len(failures) - len(plan.failures))
        fused = counted(done, "bracket")
        print(f"ffmef batch: {word}: {fused} fused, {rest} left; run it again to go on", file=sys.stderr)
        return status
    _report(plan.left, failures)
    said = f"{counted(done, 'bracket')} fused, {there} kept, {counted(len(failures), 'failure')}"
    print(f"{printable(args.output)}: {said}")
    return 1 if failures or not plan.groups else 0


def _place(target: str) -> str:
    """Return a path as one would type it here."""
    place = os.path.relpath(target)
    return target if place.startswith(os.pardir) else place


def _check_output(output: str, extension: str, options, jobs) -> None:
    """Raise an error that would be the same for every target."""
    from ffmef.imaging import paths

    if output in ("", paths.STANDARD):
        raise InputError(f"--output must be a folder, got {output!r}")
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output must be a folder, got the file {output}")
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        raise InputError(f"--output {output} cannot be written into: no permission to write in {existing}")
    jobs.check(str(existing / f"x.{extension}"), options)


def _try_fusion(options) -> None:
    """Raise errors of the weights, backend or device once, before thousands of jobs do."""
    import numpy as np

    from ffmef import pipeline

    frames = [np.full((32, 32, 3), level, np.uint8) for level in (60, 180)]
    deghost = options.fusion["deghost"] is not False  # any frame does: brackets differ in length
    images = dict(zip(("infrared", "visible"), frames, strict=True)) if options.task == "vif" else frames
    pipeline.fuse(images, options.task, **{**options.fusion, "deghost": deghost})


def _try_output(output: str) -> None:
    """Create the folder for results, and raise if nothing can be written into it."""
    try:
        os.makedirs(output, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise InputError(f"--output {output} cannot be written into: {error.strerror}") from None


def _absolute(options):
    """Return the options with an absolute path of the weight file, for workers in other folders."""
    weights = options.fusion["weights"]
    if weights is None or not os.path.isfile(weights):
        return options
    return replace(options, fusion={**options.fusion, "weights": os.path.abspath(weights)})


def _seconds(text: str) -> float:
    try:
        gap = float(text)
    except ValueError:
        gap = -1.0
    if not 0 <= gap < 1e9:
        raise InputError(f"--gap must be a number of seconds, got {text!r}")
    return gap


def _progress(outcomes, total: int):
    try:
        from tqdm import tqdm
    except ImportError:
        return outcomes
    return tqdm(outcomes, total=total, unit="bracket", disable=None)  # only on a terminal


def _say(text: str) -> None:
    try:
        from tqdm import tqdm
    except ImportError:
        print(printable(f"ffmef batch: {text}"), file=sys.stderr)
        return
    tqdm.write(printable(f"ffmef batch: {text}"), file=sys.stderr)


def _report(left, failures) -> None:
    for name, why in left:
        print(printable(f"ffmef batch: {name}: left alone: {why}"), file=sys.stderr)
    for name, why in failures:
        print(printable(f"ffmef batch: {name}: {why}"), file=sys.stderr)
