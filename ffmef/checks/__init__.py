"""Checks of the kernels against float64: problems, tolerances and a judge, for ``ffmef selftest`` and the tests."""

from ffmef.checks.judge import Tally, check, check_others, check_pictures, error_of, network_error, prediction_error
from ffmef.checks.problems import (
    FILTER_SIZES,
    FilterProblem,
    Problem,
    PyramidProblem,
    bytes_moved,
    inputs,
    interpretable,
    lay_out,
    matrix,
)
from ffmef.checks.processes import check_in_processes, worker_count
from ffmef.checks.tolerances import SMALLEST, TOLERANCE

__all__ = [
    "FILTER_SIZES",
    "SMALLEST",
    "TOLERANCE",
    "FilterProblem",
    "Problem",
    "PyramidProblem",
    "Tally",
    "bytes_moved",
    "check",
    "check_in_processes",
    "check_others",
    "check_pictures",
    "error_of",
    "inputs",
    "interpretable",
    "lay_out",
    "matrix",
    "network_error",
    "prediction_error",
    "worker_count",
]
