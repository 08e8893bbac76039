"""A rehearsal of scripts/gpu_first_run.sh without a GPU: every step that its hour on one depends on, at tiny sizes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_report

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/gpu_first_run.py"


def rehearse(out: Path, *command: str, **environment: str) -> str:
    known = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "FFMEF_TRITON_TILE")}
    known |= {"FFMEF_RUN_CPU": "1", "OUT": str(out), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    known["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, cwd=ROOT, env=known | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    failures = out / "failures.txt"
    assert not failures.exists(), failures.read_text()[-4000:]
    return done.stdout


@pytest.mark.slow
def test_every_step_measures_and_nothing_fails(tmp_path: Path) -> None:
    steps = "facts,sanitize,hazards,operator,engine,networks,others,rivals,training,train,training_compiled,exposures,brackets,pictures,profiled,launches,table"
    printed = rehearse(tmp_path, sys.executable, str(SCRIPT), steps)
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {record["what"] for record in records} == {
        "bandwidth", "adaptive_fuse", "engine", "network", "network as a graph", "predict_and_fuse", "pyramid_fuse", "rival", "coarse",
        "training step", "exposures", "four pairs", "eight pairs", "fuse",
    }  # fmt: skip
    assert all(value > 0 for record in records for key, value in record.items() if key.endswith("ms"))
    assert len([record for record in records if record["what"] == "training step"]) == 23
    assert "gradients the same each time: True" in printed and "NOT FINITE" not in printed
    assert printed.count(": right, error") == 11 and "WRONG" not in printed
    assert "exposures: 30 of 30 right" in printed
    assert printed.count("ffmef train,") == 4
    assert re.search(r"(\d+) of \1 fusions of pictures right", printed)
    assert re.search(r"like those of the CPU: (\d+) of \1 right", printed)
    # The table repeats every record at the end, which survives where a long output is cut.
    assert all(f"[{record['what']}]" in printed for record in records)


@pytest.mark.slow
def test_the_script_runs_chosen_steps_within_its_limit(tmp_path: Path) -> None:
    printed = rehearse(tmp_path, "bash", "scripts/gpu_first_run.sh", STEPS="check", LIMIT="200")
    assert re.search(r"cpu 0/200: (\d+) of \1 right and repeatable", printed), printed
    assert re.search(r" s  done", printed)
    assert (tmp_path / "logs.tgz").exists()
    printed = rehearse(tmp_path, "bash", "scripts/gpu_first_run.sh", STEPS="check", LIMIT="10")
    assert "no time left for" in printed


def test_every_step_of_the_script_exists() -> None:
    """A misspelt step would be noticed on the GPU only."""
    called = set(
        re.findall(r"^(?:quietly|step|\s+step) \d+ (\w+)", (ROOT / "scripts/gpu_first_run.sh").read_text(), re.M)
    )
    called |= set(re.findall(r"\$step_of (\w+)", (ROOT / "scripts/gpu_first_run.sh").read_text()))
    defined = set(re.findall(r"^def step_(\w+)\(", SCRIPT.read_text(), re.M))
    assert called <= defined and len(called) >= 14


def test_the_report_puts_the_runs_of_a_card_beside_each_other(tmp_path: Path) -> None:
    records = (ROOT / "benchmarks/results/2026-11-26-h100/1.jsonl").read_text()
    for run in ("a", "b"):
        (tmp_path / f"{run}.jsonl").write_text(records)
    assert gpu_report.main([str(tmp_path)]) == 0
    report = (tmp_path / "report.md").read_text()
    # 1.21 ms for 12 MP; 73 planes of 48 MB at the copy's speed take 1.155 ms.
    for run in ("a", "b"):
        assert re.search(rf"forward, cuda, float32 \| {run} \|.*\| 1.21 \(1.05\) \|", report)
    assert "| DPE-MEF | a | TF32 | 30% | 37% | 87% |" in report
    assert (tmp_path / "operator.png").stat().st_size > 10_000 and (tmp_path / "networks.png").stat().st_size > 10_000
