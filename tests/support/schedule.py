"""Which tests a pytest-xdist worker gets together, and in which order the workers get them."""

from __future__ import annotations

from pathlib import PurePath

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

# The longest go first, so that no worker is left alone with one at the end.
INTERPRETED = "Triton's interpreter"
LONGEST = (INTERPRETED, "test_benchmarks_smoke.py", "test_gpu_budget.py", "test_compile.py", "test_training.py")
# Each of these tests builds its own program. Any worker may take any of them, so they fill up the end of the run.
ON_THEIR_OWN = ("test_planted_fault_is_found", "test_clean_under_sanitizer")


class ByFile(LoadScopeScheduling):
    """Keeps the tests of a file on one worker, so that what they share (programs, trained models) is made once."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        name = PurePath(file).name
        if "triton" in name:
            return INTERPRETED  # one worker, one process with the interpreter
        return nodeid if test.startswith(ON_THEIR_OWN) else name

    def _assign_work_unit(self, node: WorkerController) -> None:
        self.workqueue.move_to_end(min(self.workqueue, key=_rank), last=False)
        super()._assign_work_unit(node)


def _rank(scope: str) -> int:
    if scope in LONGEST:
        return LONGEST.index(scope)
    return len(LONGEST) + ("::" in scope)
