"""The evaluate command: what it finds, what it writes, and what it does when something is wrong."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from ffmef import cli, metrics, workers
from ffmef.evaluation import dataset, journal, published, runner, scoring

NAMES = ["EN", "QABF", "CE", "NMI"]
OPTIONS = ["--metrics", ",".join(NAMES), "--page-pixels", "64"]


def picture(seed, gain):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :40]
    light = np.exp(np.sin(x / 5 + seed) + np.cos(y / 4))[..., None] + 0.4 * rng.random((32, 40, 3))
    return np.clip(gain * light, 0, 255).astype(np.uint8)


def save(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def bench(tmp_path):
    """Three pairs in three formats, and two methods in two layouts."""
    for seed, (name, extension) in enumerate((("one", "jpg"), ("two", "png"), ("two_more", "tif"))):
        a, b = picture(seed, 20), picture(seed, 70)
        save(a, tmp_path / "data" / name / f"{name}_A.{extension}")
        save(b, tmp_path / "data" / name / f"{name}_B.{extension.upper()}")
        save(((a.astype(int) + b) // 2).astype(np.uint8), tmp_path / "mean" / f"{name}.png")
        save(np.maximum(a, b), tmp_path / "others" / f"{name}_max.png")
        save(np.minimum(a, b), tmp_path / "others" / f"{name}_min_of_two.png")
    return tmp_path


def run(bench, *extra, fused=("mean", "others")):
    arguments = [part for folder in fused for part in ("--fused", str(bench / folder))]
    return cli.main(["evaluate", str(bench / "data"), *arguments, "-o", str(bench / "out"), *OPTIONS, *extra])


def table(bench):
    with (bench / "out" / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_report_of_several_methods(bench, capsys):
    assert run(bench) == 0
    rows = table(bench)
    assert [(row["pair"], row["method"]) for row in rows] == [
        (pair, method) for pair in ("one", "two", "two_more") for method in ("mean", "max", "min_of_two")
    ]
    read = lambda path: np.asarray(Image.open(path))  # noqa: E731
    for row in rows:
        folder = bench / "data" / row["pair"]
        a, b = (read(next(folder.glob(f"*_{member}.*"))) for member in "AB")
        file = f"mean/{row['pair']}.png" if row["method"] == "mean" else f"others/{row['pair']}_{row['method']}.png"
        expected = metrics.compute(a, b, read(bench / file), NAMES)
        assert {name: float(row[name]) for name in NAMES} == expected

    content = json.loads((bench / "out" / "scores.json").read_text())
    for method in ("mean", "max", "min_of_two"):
        own = [float(row["QABF"]) for row in rows if row["method"] == method]
        average = content["averages"][method]["QABF"]
        assert (average["mean"], average["pairs"]) == (pytest.approx(np.mean(own), rel=1e-14), 3)
    assert content["failures"] == [] and content["higher_is_better"]["CE"] is False
    assert {"ffmef", "numpy", "torch"} <= content["versions"].keys()

    text = (bench / "out" / "scores.md").read_text()
    assert text in capsys.readouterr().out
    assert "EN ↑" in text and "CE ↓" in text
    for name in NAMES:
        averages = {method: content["averages"][method][name]["mean"] for method in content["averages"]}
        best = (max if metrics.METRICS[name].higher_is_better else min)(averages.values())
        assert f"**{best:.4f}**" in text
    assert text.count("**") == 2 * len(NAMES)


def test_page_needs_no_network_and_a_hostile_name_stays_text(bench):
    shutil.move(bench / "mean", bench / "<b>&mean")
    assert run(bench, fused=["<b>&mean", "others"]) == 0
    html = (bench / "out" / "report.html").read_text()
    assert "<b>&mean" not in html and "&lt;b&gt;&amp;mean" in html
    assert not re.search(r"https?://|src=\"(?!data:)|@import|url\(", html)
    assert len(re.findall(r"<img loading=\"lazy\" alt=\"[^\"]*\" src=\"data:image/webp;base64,", html)) == 3 * 5
    for row in table(bench):
        assert f"{float(row['QABF']):.4f}" in html


def test_a_second_run_computes_only_what_is_new(bench, monkeypatch, capsys):
    assert run(bench) == 0
    first = table(bench)
    asked = []

    def counted(task):
        asked.append((task.pair, task.method, task.metrics))
        return score(task)

    score = scoring.score
    monkeypatch.setattr(scoring, "score", counted)
    assert run(bench) == 0
    assert asked == [] and table(bench) == first
    save(picture(9, 40), bench / "others" / "two_max.png")
    assert run(bench) == 0
    assert [item[:2] for item in asked] == [("two", "max")]
    asked.clear()
    assert run(bench, "--metrics", "EN,SD") == 0
    assert len(asked) == 9 and {item[2] for item in asked} == {("SD",)}
    assert list(table(bench)[0]) == ["pair", "method", "EN", "SD"]


def test_an_interrupted_run_goes_on(bench, monkeypatch):
    count = iter(range(9))

    def interrupted(task):
        if next(count) == 4:
            raise KeyboardInterrupt
        return score(task)

    score = scoring.score
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "score", interrupted)
        assert run(bench) == 130
    path = bench / "out" / "journal.jsonl"
    assert len(path.read_text().splitlines()) == 4
    path.write_text(path.read_text() + '{"pair": "cut of')
    asked = []
    monkeypatch.setattr(scoring, "score", lambda task: asked.append(task) or score(task))
    assert run(bench) == 0
    assert len(asked) == 5 and len(table(bench)) == 9
    asked.clear()
    assert run(bench) == 0
    assert asked == []


def test_processes_give_the_same(bench):
    assert run(bench) == 0
    alone = table(bench)
    shutil.rmtree(bench / "out")
    assert run(bench, "--jobs", "2") == 0
    assert table(bench) == alone


def test_a_cluster_gives_the_same(bench):
    distributed = pytest.importorskip("distributed")
    assert run(bench) == 0
    alone = table(bench)
    shutil.rmtree(bench / "out")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        assert run(bench, "--scheduler", cluster.scheduler_address) == 0
    assert table(bench) == alone


def deadly(number):
    if number == 2:
        os._exit(9)
    return number * number


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_that_dies_takes_only_its_picture_along(processes):
    outcomes = dict(workers.in_processes(deadly, range(5), processes))
    assert outcomes == {0: 0, 1: 1, 2: workers.DIED, 3: 9, 4: 16}
    assert outcomes[2].reason == "its process died, perhaps for lack of memory: try fewer --jobs"


def test_what_a_worker_lost_is_a_failure_of_its_picture(bench, monkeypatch, capsys):
    def lossy(function, items, jobs, begin):
        yield items[0], workers.DIED
        for item in items[1:]:
            yield item, function(item)

    monkeypatch.setattr(workers, "in_processes", lossy)
    assert run(bench, "--jobs", "2") == 1
    assert "its process died" in capsys.readouterr().err and len(table(bench)) > 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_workers_end_with_a_killed_run(bench):
    arguments = ["evaluate", str(bench / "data"), "--fused", str(bench / "mean"), "-o", str(bench / "out"), *OPTIONS]
    code = (
        "import os, sys, multiprocessing\nfrom ffmef import cli\nfrom ffmef.evaluation import runner\n"
        "def outcomes(tasks, *how):\n"
        "    for outcome in original(tasks, *how):\n"
        "        print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
        "original, runner._outcomes = runner._outcomes, outcomes\n"
        "if __name__ == '__main__':\n    cli.main(sys.argv[1:])\n"
    )
    script = bench / "run.py"
    script.write_text(code)
    result = subprocess.run([sys.executable, str(script), *arguments, "--jobs", "2"], capture_output=True, text=True)
    assert result.returncode == -9
    workers = [int(pid) for pid in result.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlive the run"
        time.sleep(0.1)
    assert run(bench, fused=["mean"]) == 0 and len(table(bench)) == 3


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_save_as_source(bench):
    assert run(bench, "--save-as", "source", fused=["mean"]) == 0
    as_source = {row["pair"]: row for row in table(bench)}
    saved = Image.open(bench / "out" / "fused" / "mean" / "one.jpg")
    default = bench / "default.jpg"
    Image.open(bench / "mean" / "one.png").save(default)
    assert default.read_bytes() == (bench / "out" / "fused" / "mean" / "one.jpg").read_bytes()
    a, b = (np.asarray(Image.open(bench / "data" / "one" / f"one_{m}")) for m in ("A.jpg", "B.JPG"))
    assert float(as_source["one"]["QABF"]) == metrics.qabf(a, b, np.asarray(saved))
    assert run(bench, fused=["mean"]) == 0
    lossless = {row["pair"]: row for row in table(bench)}
    assert lossless["one"] != as_source["one"]
    assert lossless["two"] == as_source["two"] and lossless["two_more"] == as_source["two_more"]


def test_broken_pairs_do_not_stop_the_others(bench, capsys):
    data = bench / "data"
    (data / "two" / "two_B.PNG").unlink()
    save(picture(0, 20)[:-1], bench / "mean" / "one.png")
    save(np.full((32, 40, 3), 9, np.uint8), bench / "mean" / "two_more.png")
    save(picture(5, 20), data / "three" / "three_A.png")
    save(picture(5, 70)[:, :-2], data / "three" / "three_B.png")
    save(picture(5, 70), bench / "mean" / "three.png")
    save(picture(5, 70), data / "four" / "four_A.png")
    save(picture(5, 70), data / "four" / "four_B.png")
    save(picture(5, 70), data / "five" / "five_A.png")
    save(picture(5, 70), data / "five" / "five_A.bmp")
    save(picture(5, 70), data / "five" / "five_B.png")
    (data / "six").mkdir()
    tifffile.imwrite(data / "six" / "six_A.tif", np.full((32, 40), 300, np.float32))
    save(picture(5, 70), data / "six" / "six_B.png")
    save(picture(5, 70), bench / "mean" / "six.png")
    save(picture(5, 70), data / "seven" / "seven_A.png")
    (data / "seven" / "seven_B.png").write_bytes(b"no picture")
    save(picture(5, 70), bench / "mean" / "seven.png")
    assert run(bench, fused=["mean"]) == 1
    failures = {f["pair"]: f["reason"] for f in json.loads((bench / "out" / "scores.json").read_text())["failures"]}
    assert failures.keys() == {"one", "two", "three", "four", "five", "six", "seven"}
    assert failures["one"] == "fused must have the size of a, (32, 40), got (31, 40)"
    assert failures["two"] == "two_B is missing, found two_A.png"
    assert failures["three"] == "sources differ in size: three_A.png 40 x 32, three_B.png 38 x 32"
    assert failures["four"] == "no fused picture"
    assert failures["five"] == "five_A exists 2 times: five_A.bmp, five_A.png"
    assert (
        "six_A.tif: floats must lie in 0 to 1 to be scored, got 300" in failures["six"]
        and "seven_B.png" in failures["seven"]
    )
    [row] = table(bench)
    assert row["pair"] == "two_more" and row["NMI"] == "" and float(row["EN"]) == 0  # constant: not defined
    error = capsys.readouterr().err
    assert "ffmef evaluate: one by mean: fused must have the size of a" in error
    assert "two_B is missing" in (bench / "out" / "report.html").read_text()
    text = (bench / "out" / "scores.md").read_text()
    assert "- two: two_B is missing" in text and "Averages of mean over fewer pairs" in text


def test_averages_leave_out_what_is_not_defined(bench):
    save(np.full((32, 40, 3), 9, np.uint8), bench / "mean" / "two.png")
    assert run(bench, fused=["mean"]) == 0
    nmi = [float(row["NMI"]) for row in table(bench) if row["NMI"]]
    assert len(nmi) == 2
    average = json.loads((bench / "out" / "scores.json").read_text())["averages"]["mean"]["NMI"]
    assert (average["mean"], average["pairs"]) == (pytest.approx(np.mean(nmi), rel=1e-14), 2)
    assert "Averages of mean over fewer pairs: NMI 2." in (bench / "out" / "scores.md").read_text()


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--task", "xyz"], "--task must be one of mef, mff, vif, got 'xyz'"),
        (["--save-as", "xyz"], "--save-as must be one of lossless, source, got 'xyz'"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--page-pixels", "2"], "--page-pixels must be at least 16, got 2"),
        (["--metrics", "EN,XYZ"], "--metrics must be among CE, .*, got 'XYZ'"),
        (["--metrics", ","], "--metrics must name a metric, all, or several of CE, .*; got none"),
        (["--fused", "nowhere"], "--fused must be a folder of fused pictures, got nowhere"),
        (["--weights", "nowhere.safetensors"], "nowhere"),
    ],
)
def test_mistakes_are_named_in_one_line(bench, capsys, extra, message):
    assert run(bench, *extra) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert not (bench / "out").exists()


def test_metric_names():
    assert runner._metric_names(["Q_MI", "QTE,Q_G"]) == ["NMI", "TE", "QABF"]  # of Liu's toolbox
    assert runner._metric_names(["Q^{AB/F}, en;mef_ssim,", "MEF SSIM", "standard deviation", "ag QNICE"]) == [
        "QABF", "EN", "MEF_SSIM", "SD", "AG", "QNCIE",
    ]  # fmt: skip
    every = runner._metric_names(["EN,All"])
    assert every[0] == "EN" and sorted(every) == sorted(set(metrics.METRICS) - {"BRISQUE", "NIQE"})
    assert runner._metric_names(None) is None


def test_a_wrong_folder_is_named(bench, capsys):
    for folder, message in ((bench / "nowhere", "must be a folder"), (bench / "mean", "must hold pairs")):
        assert cli.main(["evaluate", str(folder), "-o", str(bench / "out")]) == 2
        assert f"DATASET {message}" in capsys.readouterr().err
    save(picture(0, 10), bench / "strange" / "onetwo.png")
    assert run(bench, fused=["strange"]) == 2
    assert "--fused must hold NAME_METHOD.ext" in capsys.readouterr().err
    save(picture(0, 10), bench / "mean" / "one_max.png")
    assert run(bench) == 2
    assert "two pictures of one by max" in capsys.readouterr().err


def test_infrared_and_visible(tmp_path):
    save(picture(1, 50), tmp_path / "data" / "x" / "x_VI.jpg")
    save(picture(1, 50)[..., 0], tmp_path / "data" / "x" / "x_IR.jpg")
    save(picture(2, 50), tmp_path / "fused" / "x_some.jpg")
    arguments = ["evaluate", str(tmp_path / "data"), "--task", "vif", "--fused", str(tmp_path / "fused")]
    assert cli.main([*arguments, "-o", str(tmp_path / "out")]) == 0
    [row] = table(tmp_path)
    assert list(row)[2:] == ["AG", "EI", "EN", "PSNR", "QCV", "RMSE", "SF", "SSIM"]
    read = lambda path: np.asarray(Image.open(tmp_path / path))  # noqa: E731
    args = read("data/x/x_VI.jpg"), read("data/x/x_IR.jpg"), read("fused/x_some.jpg")
    assert float(row["SF"]) == metrics.sf(*args, convention="vifb") != metrics.sf(*args)
    [pair] = dataset.find_pairs(tmp_path / "data").pairs
    assert (pair.a.name, pair.b.name) == ("x_VI.jpg", "x_IR.jpg")


def test_fuses_with_weights(bench, monkeypatch, capsys):
    import torch

    from ffmef import models

    torch.manual_seed(0)
    path = bench / "some.safetensors"
    models.save(models.FFMEF(), path)
    assert run(bench, "--weights", str(path), fused=[]) == 0
    rows = table(bench)
    assert [row["method"] for row in rows] == ["some"] * 3
    import ffmef

    a, b = (np.asarray(Image.open(bench / "data" / "one" / f"one_{m}")) for m in ("A.jpg", "B.JPG"))
    fused = ffmef.fuse([a, b], weights=str(path))
    np.testing.assert_array_equal(np.asarray(Image.open(bench / "out" / "fused" / "some" / "one.png")), fused)
    assert float(rows[0]["QABF"]) == metrics.qabf(a, b, fused)
    monkeypatch.setattr(scoring, "score", None)
    assert run(bench, "--weights", str(path), fused=[]) == 0
    assert run(bench, "--weights", str(path), "--weights", str(path), fused=[]) == 2


def test_faults_stand_beside_the_scores(bench, capsys, monkeypatch):
    """Of every method that fuses; pairs that are too small for margins and tiles are named, others measured."""
    from ffmef import faults, pipeline

    for name, gain in (("A", 20), ("B", 70)):
        large = picture(3, gain).repeat(6, 0).repeat(6, 1)
        save(large, bench / "data" / "large" / f"large_{name}.png")
    measured = []

    def measure(fuse, scenes, most):
        measured.extend(scenes)
        assert most == 2  # the weights mef are for pairs
        assert np.array_equal(fuse(scenes[0]), pipeline.fuse(scenes[0], weights="mef"))
        return [faults.Fault("identity", "levels", 0.25, 0.5), faults.Fault("ghost", "levels", None, None)]

    monkeypatch.setattr(faults, "measure", measure)
    assert run(bench, "--weights", "mef", "--faults", "--metrics", "EN", fused=["mean"]) == 1  # mean lacks "large"
    assert len(measured) == 1 and measured[0][0].shape == (192, 240, 3)
    told = capsys.readouterr().out
    assert "| identity, levels | 0.25 / 0.50 |" in told and "| ghost, levels | – |" in told
    assert "Faults: one is not measured: scenes must hold" in told
    page = (bench / "out" / "report.html").read_text()
    assert "<td>0.25 / 0.50</td>" in page and "<td>–</td>" in page
    stored = json.loads((bench / "out" / "scores.json").read_text())["faults"]
    assert stored["mef"][0]["worst"] == 0.5 and list(stored) == ["mef"]
    assert run(bench, "--faults", "--metrics", "EN", fused=["mean"]) == 1
    assert "Faults: not measured, because fused pictures alone do not show them" in capsys.readouterr().out
    assert run(bench, "--faults", "--task", "mff", fused=["mean"]) == 2
    assert "--faults must be left out for task mff" in capsys.readouterr().err


def test_weights_of_one_name_are_told_apart(bench, capsys):
    from ffmef import models

    for folder in ("first", "second"):
        (bench / folder).mkdir()
        models.save(models.FFMEF(), bench / folder / "mef.safetensors")
    first, second = (str(bench / folder / "mef.safetensors") for folder in ("first", "second"))
    given = ["--weights", first, "--weights", "mef", "--weights", second]
    assert run(bench, *given, "--metrics", "EN", fused=[]) == 0
    assert [row["method"] for row in table(bench)][:3] == ["first/mef", "mef", "second/mef"]
    assert (bench / "out" / "fused" / "first_mef" / "one.png").exists()
    assert run(bench, "--weights", "mef", "--weights", "mef", fused=[]) == 2
    assert "different names, got mef twice" in capsys.readouterr().err


def test_without_weights_the_default_ones_fuse(bench):
    from ffmef import pipeline

    assert run(bench, fused=[]) == 0
    assert {row["method"] for row in table(bench)} == {pipeline.default_weights("mef")}


def test_published_row_stands_beside_a_whole_benchmark_only():
    names = ["507", "AirBellowsGap", "flowerGate", "hongkong_02", "WaffleHouse"]
    whole = names + [f"other_{i}" for i in range(95)]
    [(label, row)] = published.rows(whole).items()
    assert label == "FFMEF (paper)" and set(row) == set(runner.TASK_METRICS["mef"])
    assert published.rows(whole[:-1]) == published.rows(names) == {}


def test_journal_keeps_files_apart(tmp_path):
    book = journal.Journal(tmp_path / "j.jsonl")
    book.add("p", "m", "key", {"EN": 1.5, "NMI": None})
    book.add("p", "m", "key", {"SD": float("inf")})
    again = journal.Journal(tmp_path / "j.jsonl")
    assert again.values("p", "m", "key") == {"EN": 1.5, "NMI": None, "SD": float("inf")}
    assert again.values("p", "m", "other") == again.values("p", "n", "key") == {}


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['ffmef', 'evaluate', '-h']\nfrom ffmef import cli\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "assert not {'scipy', 'cv2', 'jinja2', 'ffmef.metrics'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
