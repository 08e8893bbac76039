"""Scores every method on every pair and writes the report."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import math
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ffmef import focus, models, workers
from ffmef.errors import InputError, counted
from ffmef.evaluation import dataset as datasets
from ffmef.evaluation import layouts, page, published, report, roles, scoring
from ffmef.evaluation.journal import Journal
from ffmef.faults import Fault
from ffmef.metrics.registry import METRICS, canonical
from ffmef.models import registry
from ffmef.version import __version__

TASK_METRICS = {
    "mef": ["EN", "FMI", "NMI", "PSNR", "QNCIE", "AG", "QABF", "CE", "QP", "QW", "MEF_SSIM", "QCB", "QCV", "VIF"],
    "mff": ["EN", "FMI", "QNCIE", "AG", "QABF", "QW", "QCV", "VIF"],
    "vif": ["AG", "EI", "EN", "PSNR", "QCV", "RMSE", "SF", "SSIM"],
}
SAVE_AS = {"lossless": "stored without loss", "source": "saved under their source's extension (JPEG quality 75)"}
PAGE_PIXELS = 1024


def versions() -> dict[str, str]:
    """Return the versions of everything that may change a digit."""
    packages = ("torch", "numpy", "opencv-python-headless", "pillow")
    found = {"ffmef": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def evaluate(
    folder: str | Path,
    output: str | Path,
    *,
    task: str = "mef",
    fused: list[str] | None = None,
    weights: list[str] | None = None,
    metrics: list[str] | None = None,
    save_as: str = "lossless",
    faults: bool = False,
    jobs: int = 1,
    scheduler: str | None = None,
    page_pixels: int = PAGE_PIXELS,
    progress: Callable[[Iterator, int], Iterator] = lambda outcomes, total: outcomes,
) -> report.Report:
    """Score fused pictures of a benchmark folder and write scores.csv, .json, .md, .tex and report.html.

    Args:
        folder: a benchmark in one of the layouts of :mod:`ffmef.evaluation.layouts`, or a table (CSV) of its files.
        output: the report's folder. Scores of an earlier run there are reused while their files are unchanged.
        task: "mef", "mff" or "vif"; decides the metrics and how to fuse.
        fused: folders of fused pictures NAME_METHOD.ext, or NAME.ext of a method named like the folder.
        weights: names or files of weights to fuse with; if ``fused`` is not given either, those of the task.
        metrics: names of :data:`ffmef.metrics.METRICS`, in any case, with or without hyphens, one or several per
            string; "all" means all that need no further package, None those of the paper's table.
        save_as: "lossless" scores pictures as they are, "source" scores them as saved under their first
            source's extension with an image library's defaults, as published tables do.
        faults: also measure the faults of :mod:`ffmef.faults` of every method that fuses here, on the pairs reduced to
            sides of at most 768 pixels; task "mef" only.
        jobs: processes that score at the same time. If one dies, only its picture is lost.
        scheduler: address of a dask.distributed cluster that scores instead; its workers must see the files.
        page_pixels: the longest side of pictures embedded in the page.
        progress: wraps the iterator of outcomes, given their number.

    Returns:
        The report; its ``failures`` name what could not be scored.

    Raises:
        InputError: an argument cannot be used; nothing has been scored then.
    """
    folder, output = Path(folder), Path(output)
    if scheduler is not None:  # workers have another working folder
        folder, output = folder.absolute(), output.absolute()
        fused = [str(Path(given).absolute()) for given in fused or ()]
        weights = [str(Path(given).absolute()) if Path(given).is_file() else given for given in weights or ()]
    task, save_as = task.casefold(), save_as.casefold()
    _check_settings(output, task, save_as, faults, jobs, page_pixels)
    names = _metric_names(metrics)
    found = datasets.find_pairs(folder)
    pairs, failures = found.pairs, found.failures
    if task == "vif" and found.guessed:
        raise InputError(f"DATASET must say which picture is infrared, the names of {', '.join(found.guessed)} do not")
    if task == "vif" and folder.is_dir():
        found.remarks += _assumed_infrared(folder, pairs)
    names = _default_metrics(task, pairs) if names is None else names
    methods, missing = datasets.find_fused([Path(f) for f in fused or []], pairs, found.fused)
    failures += missing

    tasks = []
    for method, pictures in methods.items():
        for pair in pairs:
            if pair.name in pictures:
                tasks.append(_task(pair, method, output, task, names, save_as, fused=pictures[pair.name]))
    fusing = _names_of_weights(weights or ([] if methods else _default_weights(task)), methods)
    for method, given in fusing:
        if given != focus.NAME:
            models.load(given)  # broken weights would fail for every pair
        methods[method] = {}
        identity = _weights_identity(given)
        for pair in pairs:
            tasks.append(_task(pair, method, output, task, names, save_as, weights=given, identity=identity))

    journal = Journal(output / "journal.jsonl")
    done, failed = _score(tasks, names, journal, lambda some: _outcomes(some, jobs, scheduler), progress)
    failures += failed
    scores, scored = _by_method(done, journal, list(methods), names)
    result = report.Report(
        folder.resolve().name, task, SAVE_AS[save_as], list(names), list(methods), pairs, scores, scored,
        sorted(failures, key=lambda f: (f.pair, f.method)),
    )  # fmt: skip
    result.published = published.rows([pair.name for pair in pairs]) if task == "mef" else {}
    result.remarks = [*found.remarks, *_bracket_remarks(result), *_notes(done, journal)]
    result.remarks += [published.REMARK] if result.published else []
    if faults:
        result.faults, unmeasured = _faults(fusing, pairs)
        result.remarks += unmeasured
    _write(result, output, page_pixels)
    return result


def _by_method(
    done: list[scoring.Task], journal: Journal, methods: list[str], names: list[str]
) -> tuple[dict[str, dict], dict[str, dict]]:
    """Return, by method and pair, the scores and the picture that was scored."""
    scores: dict[str, dict] = {method: {} for method in methods}
    scored: dict[str, dict] = {method: {} for method in methods}
    for item in sorted(done, key=lambda t: t.pair):
        known = journal.values(item.pair, item.method, item.key)
        scores[item.method][item.pair] = {name: known[name] for name in names}
        scored[item.method][item.pair] = Path(item.saved or item.fused or "")
    return scores, scored


def _write(result: report.Report, output: Path, page_pixels: int) -> None:
    report.write_csv(result, output / "scores.csv")
    report.write_json(result, output / "scores.json", versions())
    report.write_markdown(result, output / "scores.md")
    report.write_latex(result, output / "scores.tex")
    page.write_page(result, output / "report.html", page_pixels)


def _metric_names(given: list[str] | None) -> list[str] | None:
    """Return the keys of the metrics that are asked for, each once, or None if there are none."""
    if given is None:
        return None
    keys: list[str] = []
    for text in (part.strip() for entry in given for part in re.split("[,;]", entry)):
        if text.casefold() == "all":
            keys += [name for name, metric in METRICS.items() if not metric.extra]
            continue
        parts = text.split()
        try:
            keys.append(canonical(text)) if parts else None
        except ValueError as error:  # perhaps several in one string
            if len(parts) < 2:
                raise InputError(f"--metrics {str(error).removeprefix('names ')}") from None
            keys += _metric_names(parts) or []
    if not keys:
        raise InputError(f"--metrics must name a metric, all, or several of {', '.join(METRICS)}; got none")
    return list(dict.fromkeys(keys))


def _check_settings(output: Path, task: str, save_as: str, faults: bool, jobs: int, page_pixels: int) -> None:
    """Raise InputError for a setting that cannot be used with any pictures."""
    if task not in TASK_METRICS:
        raise InputError(f"--task must be one of {', '.join(TASK_METRICS)}, got {task!r}")
    if save_as not in SAVE_AS:
        raise InputError(f"--save-as must be one of {', '.join(SAVE_AS)}, got {save_as!r}")
    if faults and task != "mef":
        raise InputError(f"--faults must be left out for task {task}: exposures alone have such faults")
    if jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {jobs}")
    if page_pixels < 16:
        raise InputError(f"--page-pixels must be at least 16, got {page_pixels}")
    if output.exists() and not output.is_dir():
        raise InputError(f"--output must be a folder, got the file {output}")


def _score(
    tasks: list[scoring.Task],
    names: list[str],
    journal: Journal,
    outcomes_of: Callable[[list[scoring.Task]], Iterator],
    progress: Callable[[Iterator, int], Iterator],
) -> tuple[list[scoring.Task], list[datasets.Failure]]:
    """Score what the journal does not hold yet, and return what was scored and what failed."""
    done, open_tasks, failures = [], [], []
    for item in tasks:
        known = journal.values(item.pair, item.method, item.key)
        lacking = tuple(name for name in names if name not in known)
        if lacking or (item.saved and not Path(item.saved).exists()):
            open_tasks.append(scoring.replace_metrics(item, lacking or item.metrics))
        else:
            done.append(item)
    for item, outcome in progress(outcomes_of(open_tasks), len(open_tasks)):
        if "failure" in outcome:
            failures.append(datasets.Failure(item.pair, item.method, outcome["failure"]))
        else:
            journal.add(item.pair, item.method, item.key, outcome["values"], outcome["note"])
            done.append(item)
    return done, failures


def _faults(fusing: list[tuple[str, str]], pairs: list[datasets.Pair]) -> tuple[dict[str, list[Fault]], list[str]]:
    """Return the faults of every method that fuses, and remarks about scenes that cannot be measured."""
    from ffmef import faults, pipeline
    from ffmef.imaging.io import read_picture

    measured: dict[str, list[Fault]] = {}
    left_out: dict[str, str] = {}
    scenes = []
    for pair in pairs:
        try:
            pictures = faults.reduced([read_picture(path).pixels for path in pair.frames])
            faults.check_scene(pictures)
            scenes.append(pictures)
        except InputError as error:
            left_out[pair.name] = str(error)
    remarks = [f"Faults: {name} is not measured: {reason}." for name, reason in left_out.items()]
    if not fusing:
        remarks.append("Faults: not measured, because fused pictures alone do not show them. Give --weights.")
    for method, weights in fusing:
        spec = registry.of(models.load(weights))
        most = math.inf if spec is None or spec.most is None else spec.most
        fitting = [pictures for pictures in scenes if len(pictures) <= most]
        if len(fitting) < len(scenes):
            of = counted(len(scenes), "scene")
            remarks.append(f"Faults of {method}: on {len(fitting)} of {of}, those of two pictures.")
        if fitting:
            measured[method] = faults.measure(functools.partial(pipeline.fuse, weights=weights), fitting, most)
    return measured, remarks


def _assumed_infrared(folder: Path, pairs: list[datasets.Pair]) -> list[str]:
    """Say which pictures are assumed to be infrared if neither file nor folder is named so."""
    unnamed = [pair.b.name for pair in pairs if not roles.is_infrared(pair.b.relative_to(folder))]
    return [f"Taken for infrared, the second of two: {layouts.listed(unnamed)}."] if unnamed else []


def _bracket_remarks(result: report.Report) -> list[str]:
    """Say how pairs of more than two frames were scored."""
    brackets = [pair for pair in result.pairs if pair.more]
    if not brackets:
        return []
    sizes = ", ".join(
        f"{pair.name} {len(pair.frames)} ({pair.a.name} to {pair.frames[-1].name})" for pair in brackets[:6]
    )
    more = f" and {len(brackets) - 6} more" if len(brackets) > 6 else ""
    text = f"Brackets of more than two frames: {sizes}{more}."
    named = {kind: [name for name in result.metrics if METRICS[name].frames == kind] for kind in ("all", "two")}
    if named["all"]:
        text += f" Seeing all frames: {', '.join(named['all'])}."
    if named["two"]:
        text += f" Not defined there, because they compare two sources: {', '.join(named['two'])}."
    return [text]


def _notes(done: list[scoring.Task], journal: Journal) -> list[str]:
    """Gather what was noted while scoring, by method."""
    gathered: dict[tuple[str, str], list[str]] = {}
    for item in done:
        note = journal.note(item.pair, item.method, item.key)
        if note:
            gathered.setdefault((item.method, note), []).append(item.pair)
    return [
        f"Pictures of {method} scored {note}: {len(pairs)}, {layouts.listed(sorted(pairs))}."
        for (method, note), pairs in gathered.items()
    ]


def _names_of_weights(weights: list[str], taken: Iterable[str]) -> list[tuple[str, str]]:
    """Return each weights' method name: the file's name, after its folder's if that alone is not unique."""
    stems = [*taken, *(Path(given).stem for given in weights)]
    named = []
    for given in weights:
        path = Path(given)
        unique = stems.count(path.stem) == 1 or not path.is_file()
        named.append(path.stem if unique else f"{path.resolve().parent.name}/{path.stem}")
    names = [*taken, *named]
    for name in named:
        if names.count(name) > 1:
            raise InputError(f"--weights and --fused must have different names, got {name} twice")
    return list(zip(named, weights, strict=True))


def _default_metrics(task: str, pairs: list[datasets.Pair]) -> list[str]:
    """Return the metrics of the paper's table; for brackets, those that are defined plus those for brackets."""
    if all(pair.more for pair in pairs):
        return [*(n for n in TASK_METRICS[task] if METRICS[n].frames != "two"), "MEF_SSIM_C", "QY", "MI", "CC"]
    return TASK_METRICS[task]


def _default_weights(task: str) -> list[str]:
    """Return the weights to use by default."""
    if task == "mff":
        return [focus.NAME]
    return [registry.default(task).weights_for(task)]


def _weights_identity(weights: str) -> str:
    path = Path(weights)
    return scoring.fingerprint(path) if path.is_file() else f"{weights}, ffmef {__version__}"


def _task(pair, method, output, task, names, save_as, *, fused=None, weights=None, identity="") -> scoring.Task:
    extension = pair.a.suffix if save_as == "source" else ".png"
    saved = None
    if fused is None or save_as == "source":
        saved = str(output / "fused" / method.replace("/", "_") / f"{pair.name}{extension}")
    key = scoring.fingerprint(*pair.frames, fused or identity, task, save_as)
    toolkit = "vifb" if task == "vif" else "mefb"
    fused = None if fused is None else str(fused)
    return scoring.Task(
        pair.name, method, tuple(map(str, pair.frames)), fused, weights, task, toolkit, tuple(names), saved, key
    )


def _outcomes(tasks: list[scoring.Task], jobs: int, scheduler: str | None) -> Iterator[tuple[scoring.Task, dict]]:
    """Yield each task as it ends, with its values or its failure."""
    if scheduler is not None:
        outcomes = workers.on_cluster(scoring.score, tasks, scheduler)
    elif jobs == 1 or len(tasks) < 2:
        outcomes = ((item, scoring.score(item)) for item in tasks)
    else:
        outcomes = workers.in_processes(scoring.score, tasks, jobs, scoring.start_worker)
    with contextlib.closing(outcomes):
        for item, outcome in outcomes:
            yield item, {"failure": outcome.reason} if isinstance(outcome, workers.Lost) else outcome


def show_progress(outcomes: Iterator, total: int) -> Iterator:
    """Wrap an iterator in a progress bar on standard error."""
    from tqdm import tqdm

    return tqdm(outcomes, total=total, unit="picture", file=sys.stderr, disable=total == 0)
