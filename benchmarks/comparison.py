"""One benchmark: a provider timed in turn with its baseline, its memory, and the record of both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from ffmef import measure

EFFORT = {
    # mode: seconds for the rounds of a provider and its baseline, least rounds, most rounds
    "smoke": (0.0, 1, 1),
    "quick": (1.0, 3, 20),
    "full": (10.0, 3, 100),
}
# Seconds; a slower round is taken once, and a slower trial is both the warm-up and the measurement of memory.
SLOW = {"smoke": 0.0, "quick": 3.0, "full": 60.0}


class Comparison:
    """Times a provider against the named baseline and files the record with pytest-benchmark."""

    def __init__(self, benchmark, mode: str, device: str):
        self.benchmark, self.mode, self.device = benchmark, mode, device

    def __call__(
        self,
        run: Callable[[], object],
        *,
        subject: str,
        provider: str,
        baseline: Callable[[], object] | None = None,
        baseline_name: str | None = None,
        floor: Callable[[], object] | None = None,
        threads: int = 1,
        memory: bool = True,
        trial: Callable[[], object] | None = None,
        trials_a_round: float = 1,
        clock: str | None = None,
        rounds: int | None = None,
        **info: object,
    ) -> dict[str, object]:
        """Measure ``run`` in turn with ``baseline`` and ``floor``; return the record, which may be added to.

        ``floor`` does the minimum that any provider must do.

        ``trial`` is a lighter call for warming up and for the peak memory, ``trials_a_round`` of which make a round
        of ``run``. ``clock`` names the clock that counts, where it is not the device's own. ``rounds`` are as many as
        are taken, after one of each that does not count; None leaves that to the mode. ``info`` is stored as it is:
        sizes, dtype, the bytes that a perfect kernel would move.
        """

        def run_others() -> None:
            for other, timings in ((baseline, theirs), (floor, least)):
                if other:
                    measure.timed(other, timings, self.device)

        ours, theirs, least = measure.Timings(), measure.Timings(), measure.Timings()
        with measure.thread_count(threads):
            one_trial, peak = self.warm_up(trial or run, memory)
            if rounds is None:
                rounds = self.rounds(one_trial * trials_a_round, baseline)
            else:
                run_others(), run()
                theirs.clear(), least.clear()
            self.benchmark.group = subject
            self.benchmark.pedantic(measure.timed, (run, ours, self.device), setup=run_others, rounds=rounds)
            kernels = measure.gpu_kernels(run, self.device)
        clock = clock or measure.clock_for(self.device, threads)
        record = {
            "subject": subject,
            "provider": provider,
            "baseline": baseline_name,
            "device": self.device,
            "threads": threads,
            "clock": clock,
            "rounds": rounds,
            **info,
            **summary(ours.of(clock)),
            "rounds_s": vars(ours),
            "peak_memory": peak,
            "gpu_kernels": kernels,
        }
        if baseline:
            record |= {f"baseline_{key}": value for key, value in summary(theirs.of(clock)).items()}
            record["baseline_rounds_s"] = vars(theirs)
            ratios = [slow / fast for fast, slow in zip(ours.of(clock), theirs.of(clock))]
            record |= {"speedup": statistics.median(ratios), "speedup_iqr": measure.interquartile_range(ratios)}
        if floor:
            shares = [low / own for own, low in zip(ours.of(clock), least.of(clock))]
            record |= {"floor_median_s": statistics.median(least.of(clock)), "floor_share": statistics.median(shares)}
        self.benchmark.extra_info.update(record)
        return self.benchmark.extra_info

    def warm_up(self, trial: Callable[[], object], memory: bool) -> tuple[float, dict | None]:
        """Return the seconds and the peak memory of a trial, from further calls unless one takes too long."""
        for _ in range(2):
            peak, started = None, time.perf_counter()
            if memory:
                peak = measure.peak_memory(trial, self.device)
            else:
                measure.seconds(trial, self.device)
            took = time.perf_counter() - started
            if took > SLOW[self.mode]:
                return took, peak
        # The memory's measurement takes far longer than a short call.
        return measure.seconds(trial, self.device), peak

    def rounds(self, one_round: float, baseline: Callable[[], object] | None) -> int:
        """Warm the baseline up and return how many rounds the mode's budget allows."""
        budget, least, most = EFFORT[self.mode]
        if baseline:
            one_round += measure.seconds(baseline, self.device)
        if one_round > SLOW[self.mode]:
            least = 1
        return measure.rounds_within(budget, one_round, least, most)


def summary(seconds: list[float]) -> dict[str, float | None]:
    return {"median_s": statistics.median(seconds), "iqr_s": measure.interquartile_range(seconds)}
