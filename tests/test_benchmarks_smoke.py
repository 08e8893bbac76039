"""The benchmark suite runs: every file at tiny sizes, then the report of its records. No figure is judged here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path.stem for path in (ROOT / "benchmarks").glob("test_*.py"))


def run(*arguments: str) -> subprocess.CompletedProcess:
    # pytest-benchmark keeps no records in what it takes for a worker of xdist.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")} | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def result_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("smoke") / "result.json"
    done = run(
        "pytest",
        "benchmarks",
        "--smoke",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-p",
        "no:randomly",
        f"--benchmark-json={path}",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return path


@pytest.fixture(scope="module")
def result(result_file) -> dict:
    return json.loads(result_file.read_text())


def test_every_file_leaves_records(result):
    measured = {Path(record["fullname"].split("::")[0]).stem for record in result["benchmarks"]}
    assert measured == set(FILES)


def test_every_record_says_what_ran_where(result):
    for record in result["benchmarks"]:
        info = record["extra_info"]
        assert {"subject", "provider", "baseline", "device", "threads", "clock", "rounds"} <= info.keys(), record[
            "name"
        ]
        assert info["median_s"] > 0
        assert len(info["rounds_s"][info["clock"]]) == info["rounds"]
        if "speedup" in info:
            assert info["baseline"] != info["provider"]
            assert len(info["baseline_rounds_s"]["wall"]) == info["rounds"]
    facts = result["machine_info"]
    for name in ("processor", "cores", "torch", "python", "ffmef", "instruction_set_torch", "instruction_set_ffmef"):
        assert name in facts
    assert "node" not in facts, "the name of the machine is nobody's business"
    assert result["commit_info"].keys() == {"id", "time", "dirty"}
    assert result["mode"] == "smoke"


def test_the_report_has_every_table_and_chart(result_file, result, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmarks -->\nlast year\n<!-- /benchmarks -->\nbehind\n")
    done = run("benchmarks.report", str(result_file), "-o", str(tmp_path / "results"), "--readme", str(readme))
    assert done.returncode == 0, done.stderr
    shown = readme.read_text()
    assert shown.startswith("before\n<!-- benchmarks -->") and shown.endswith("<!-- /benchmarks -->\nbehind\n")
    assert "last year" not in shown and "DPE-MEF: 30 % less time" in shown and "Where ours loses:" in shown
    tmp_path /= "results"
    text = (tmp_path / "report.md").read_text()
    for heading in (
        "## Running time on the sizes of MEFB",
        "### The paper's claims",
        "### Where ours loses",
        "## The fusion operator",
        "## Charts",
        "Nothing here ran on a GPU.",
    ):
        assert heading in text
    for record in result["benchmarks"]:
        assert f"| {record['extra_info']['provider']} |" in text
    charts = {path.name for path in tmp_path.glob("*.png")}
    assert {"running_time.png", "roofline.png"} <= charts
    assert all((readme.parent / path).is_file() for path in re.findall(r"\]\((.*?)\)", shown))
    assert all(f"]({name})" in text for name in charts)


def test_each_record_is_kept_as_soon_as_it_is_measured(result_file, result, tmp_path):
    journal = result_file.with_suffix(".jsonl")
    facts, *records = map(json.loads, journal.read_text().splitlines())
    assert facts["commit_info"] == result["commit_info"] and facts["mode"] == "smoke"
    assert [record["extra_info"] for record in records] == [
        benchmark["extra_info"] for benchmark in result["benchmarks"] if benchmark["extra_info"]
    ]
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(journal.read_text().splitlines(keepends=True)[:4]) + '{"fullname": "benchm')
    done = run("benchmarks.report", str(cut), "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report.md").read_text()
    for record in records[:3]:
        assert f"| {record['extra_info']['provider']} |" in text


@pytest.mark.parametrize("text, reason", [("{", "cannot be read"), ("[]", "is no result file")])
def test_the_report_names_a_file_that_it_cannot_use(tmp_path, text, reason):
    broken = tmp_path / "broken.json"
    broken.write_text(text)
    done = run("benchmarks.report", str(broken), "-o", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and f"broken.json {reason}" in done.stderr


def test_the_report_names_a_readme_without_its_marks(result_file, tmp_path):
    for text in ("nothing", "<!-- /benchmarks --> <!-- benchmarks -->", "<!-- benchmarks --> <!-- benchmarks -->"):
        (tmp_path / "README.md").write_text(text)
        done = run("benchmarks.report", str(result_file), "-o", str(tmp_path), "--readme", str(tmp_path / "README.md"))
        assert done.returncode == 2 and "README.md must hold one <!-- benchmarks -->" in done.stderr
        assert (tmp_path / "README.md").read_text() == text
