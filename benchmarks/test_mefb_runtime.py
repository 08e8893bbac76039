"""The paper's running-time figure: the mean time per pair over MEFB's sizes, ours beside the rivals."""

from __future__ import annotations

import pytest

from benchmarks import mefb
from benchmarks.methods import CPU_ONLY, FAST, FASTEST, METHODS, OURS, counts

TINY = [(40, 56)]
ROUNDS = 5  # over all sizes, for methods that take milliseconds per pair
HEAVY_GMAC = 30  # multiply-adds of a 551 x 707 pair, 10^9


def cases(mode: str) -> list[str]:
    return list(METHODS)


def work(name: str, size: mefb.Size) -> int:
    """Return what the method's time grows with: whole blocks for TransMEF, pixels for all others."""
    height, width = size
    return -(-height // 256) * -(-width // 256) if name == "TransMEF" else height * width


def classes(name: str) -> int:
    """Return how many sizes a quick run takes: fewer for slow methods, whose time grows with the pixels."""
    return 2 if (counts(name)[1] or 0) > HEAVY_GMAC else mefb.CLASSES


@pytest.fixture(scope="module")
def real_pictures(pytestconfig):
    folder = pytestconfig.getoption("--mefb")
    return mefb.pictures(folder) if folder else None


@pytest.fixture
def pairs(case, mode, real_pictures):
    """The pairs to time, the sizes that they stand for, the pair of the trial, and whether the pictures are real."""
    if real_pictures:
        return real_pictures, [image.shape[:2] for image, _ in real_pictures], mefb.bracket(mefb.REFERENCE), True
    every = TINY if mode == "smoke" else mefb.sizes()
    timed = mefb.sample(every, classes(case)) if mode == "quick" and case not in FAST else every
    reference = mefb.bracket(TINY[0] if mode == "smoke" else mefb.REFERENCE)
    return [mefb.bracket(size) for size in timed], every, reference, False


@pytest.mark.cases(of=cases)
def test_mefb_runtime(case, mode, pairs, compare, device):
    if device != "cpu" and case in CPU_ONLY:
        pytest.skip(f"{case} runs on the CPU only")
    pictures, every, reference, real = pairs
    beside = FASTEST if case in FAST else OURS  # a slow baseline would leave time for one round
    method, own = METHODS[case], METHODS[beside].build(device)
    prepare = method.build(device)
    runs, own_runs = ([make(pair) for pair in pictures] for make in (prepare, own))
    timed = [image.shape[:2] for image, _ in pictures]
    parameters, gmac = counts(case)
    timed_work, all_work = (sum(work(case, size) for size in sizes) for sizes in (timed, every))
    record = compare(
        lambda: [run() for run in runs],
        subject="mefb",
        provider=case,
        baseline=None if case == beside else lambda: [run() for run in own_runs],
        baseline_name=beside,
        rounds=ROUNDS if case in FAST and mode != "smoke" else None,
        trial=prepare(reference),
        trials_a_round=timed_work / work(case, reference[0].shape[:2]),
        kind=method.kind,
        parameters=parameters,
        gmac=gmac,
        pairs_stood_for=len(every),
        sizes_timed=len(timed),
        real_pictures=real,
    )
    if beside == OURS and case != OURS:
        own_scale = sum(work(OURS, size) for size in every) / sum(work(OURS, size) for size in timed)
        record["pair_ratio"] = all_work / timed_work / own_scale / record["speedup"]
    record["pair_s"] = record["median_s"] / len(every) * all_work / timed_work
