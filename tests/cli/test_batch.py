"""``ffmef batch``: grouping, the plan, resuming, broken files, several processes, a cluster."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffmef import batch, grouping, jobs
from ffmef.cli import main
from ffmef.errors import InputError
from ffmef.imaging.io import read_picture, write_picture

SHAPE = (40, 60, 3)
random = np.random.default_rng(0)
scene = np.cumsum(np.cumsum(random.normal(0, 1, SHAPE), 0), 1)
scene = (scene - scene.min()) / np.ptp(scene)


def frame(
    path: Path,
    second: float | None,
    stops: float = 0,
    camera: str = "A",
    size: int = 0,
    bias=None,
    zone: str = "",
    lens: str = "",
) -> Path:
    """Write a small JPEG with the EXIF of a camera."""
    pixels = np.clip(scene * 160 * 2.0 ** (stops / 2), 0, 255).astype(np.uint8)[: SHAPE[0] - size]
    exif = Image.Exif()
    exif[272] = camera
    if second is not None:
        details = exif.get_ifd(34665)
        minutes, seconds = divmod(int(second), 60)
        details[36867] = f"2024:05:06 07:{minutes:02}:{seconds:02}"
        details[37521] = f"{second % 1:.2f}"[2:]
        for tag, text in ((36881, zone), (42036, lens)):
            if text:
                details[tag] = text
        details[33434], details[37380] = 0.01 * 2.0**stops, float(stops if bias is None else bias)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def card(folder: Path, brackets: int = 2, start: int = 0) -> list[Path]:
    """A memory card: brackets of three, ten seconds apart."""
    return [
        frame(folder / f"IMG_{3 * number + index}.jpg", start + 10 * number + index / 4, stops)
        for number in range(brackets)
        for index, stops in enumerate((0, -2, 2))
    ]


def names(plan: grouping.Plan) -> list[list[str]]:
    return [[path.stem.removeprefix("IMG_") for path in group.frames] for group in plan.groups]


def run(*arguments) -> int:
    return main(["batch", *map(str, arguments)])


# Grouping


def test_brackets_by_exif(tmp_path):
    card(tmp_path / "in", 3)
    frame(tmp_path / "in" / "IMG_20.jpg", 200)  # a snapshot
    plan = grouping.find([tmp_path / "in"], tmp_path / "out")
    assert names(plan) == [["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8"]]
    assert [group.name for group in plan.groups] == ["IMG_0_fused", "IMG_3_fused", "IMG_6_fused"]
    assert plan.left == [(str(tmp_path / "in" / "IMG_20.jpg"), "a single frame")] and plan.failures == []


def test_an_exposure_that_repeats_begins_the_next_bracket(tmp_path):
    """Shot without a pause: nothing but the exposures tells the brackets apart."""
    for index, stops in enumerate((0, -2, 2) * 3):
        frame(tmp_path / f"IMG_{index}.jpg", index * 0.5, stops)
    assert names(grouping.find([tmp_path], tmp_path / "out")) == [["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8"]]


def test_a_counter_that_starts_again(tmp_path):
    """At one second, in one folder and across two of a card, by EXIF and by count."""
    numbers = [9998, 9999, 1, 2, 3, 4]
    for index, number in enumerate(numbers):
        stops = (0, -2, 2)[index % 3]
        frame(tmp_path / "one" / f"IMG_{number:04}.jpg", 0, stops)
        frame(tmp_path / "DCIM" / ("100CANON" if number > 9 else "101CANON") / f"IMG_{number:04}.jpg", index, stops)
    expected = [["9998", "9999", "0001"], ["0002", "0003", "0004"]]
    assert names(grouping.find([tmp_path / "one"], tmp_path / "out")) == expected
    assert names(grouping.find([tmp_path / "one"], tmp_path / "out", count=3)) == expected
    plan = grouping.find([tmp_path / "DCIM"], tmp_path / "out")
    assert names(plan) == expected
    assert [group.name for group in plan.groups] == ["100CANON/IMG_9998_fused", "101CANON/IMG_0002_fused"]


def test_one_of_the_files_of_one_shot_is_used(tmp_path):
    """The TIFF, whose EXIF lies in a directory of its own; not the raw file that is none."""
    for file in card(tmp_path, 1):
        write_picture(file.with_suffix(".tif"), read_picture(file))
        file.with_suffix(".NEF").write_bytes(b"not a raw file")
    plan = grouping.find([tmp_path], tmp_path / "out")
    assert [path.name for group in plan.groups for path in group.frames] == ["IMG_0.tif", "IMG_1.tif", "IMG_2.tif"]
    assert next((Path(name).name, why) for name, why in plan.left) == (
        "IMG_0.jpg",
        "IMG_0.tif of the same name is used",
    )
    assert {Path(name).suffix for name, _ in plan.failures} == {".NEF"}
    by_count = grouping.find([tmp_path], tmp_path / "out", count=3)
    assert [path.suffix for path in by_count.groups[0].frames] == [".tif"] * 3 and by_count.failures == []


def test_a_cr3_file_says_when_it_was_taken(tmp_path):
    def box(name: bytes, body: bytes) -> bytes:
        return (8 + len(body)).to_bytes(4, "big") + name + body

    for index, stops in enumerate((0, -2)):
        camera, details = Image.Exif(), Image.Exif()
        camera[272], details[36867], details[37380] = "R", f"2024:05:06 07:00:0{index}", float(stops)
        boxes = box(b"CMT1", camera.tobytes()[6:]) + box(b"CMT2", details.tobytes()[6:])
        (tmp_path / f"{index}.CR3").write_bytes(box(b"ftyp", b"crx \0\0\0\1crx isom") + box(b"moov", boxes) + bytes(99))
    assert names(grouping.find([tmp_path], tmp_path / "out")) == [["0", "1"]]


def test_focus_stacks_are_of_equal_exposures(tmp_path):
    for index in range(6):
        frame(tmp_path / f"IMG_{index}.jpg", index * 0.5, stops=2 * (index // 4))
    assert names(grouping.find([tmp_path], tmp_path / "out", task="mff")) == [["0", "1", "2", "3"], ["4", "5"]]


def test_folders_given_twice_and_folders_of_one_name(tmp_path):
    card(tmp_path / "a" / "x", 1)
    card(tmp_path / "b" / "x", 1)
    found = [grouping.find([tmp_path / name for name in given], tmp_path / "out") for given in (
        ("a", "a"), ("a", "a/x"), ("a/x", "b/x"))]  # fmt: skip
    assert [[group.name for group in plan.groups] for plan in found] == [
        ["a/x/IMG_0_fused"], ["a/x/IMG_0_fused"], ["a/x/IMG_0_fused", "b/x/IMG_0_fused"]
    ]  # fmt: skip


def test_pipes_and_links_to_nowhere_are_named(tmp_path):
    card(tmp_path, 1)
    os.mkfifo(tmp_path / "IMG_8.jpg")
    (tmp_path / "IMG_9.jpg").symlink_to("nowhere")
    plan = grouping.find([tmp_path], tmp_path / "out")
    assert len(plan.groups) == 1 and {Path(name).stem for name, _ in plan.failures} == {"IMG_8", "IMG_9"}


def test_bursts_of_equal_exposures_are_no_brackets(tmp_path):
    for index in range(4):
        frame(tmp_path / f"IMG_{index}.jpg", index * 0.5)
    frame(tmp_path / "IMG_9.jpg", 60)
    plan = grouping.find([tmp_path], tmp_path / "out")
    burst = "one of a burst of equal exposures"
    assert plan.groups == [] and [why for _, why in plan.left] == [burst, burst, burst, burst, "a single frame"]
    for index, stops in enumerate((0, 0.1, -0.1, 0.2)):  # automatic exposure under a sky that changes
        frame(tmp_path / f"IMG_{index}.jpg", index * 0.5, stops, bias=0)
    assert grouping.find([tmp_path], tmp_path / "out").groups == []
    for index, stops in enumerate((0, 2, -2)):  # a bracket set by hand
        frame(tmp_path / f"IMG_{index}.jpg", index * 0.5, stops, bias=0)
    assert names(grouping.find([tmp_path], tmp_path / "out"))[0][:3] == ["0", "1", "2"]


def test_pnm_files_of_a_folder_are_frames(tmp_path):
    for index in range(2):
        Image.fromarray(np.full((8, 8, 3), 90 * (index + 1), np.uint8)).save(tmp_path / f"{index}.ppm")
    assert names(grouping.find([tmp_path], tmp_path / "out", count=2)) == [["0", "1"]]
    assert len(grouping.find([tmp_path], tmp_path / "out").failures) == 2  # no capture time, but pictures


def test_a_long_exposure_does_not_end_its_bracket(tmp_path):
    frame(tmp_path / "IMG_0.jpg", 0, 0)
    frame(tmp_path / "IMG_1.jpg", 1, 11)  # 20 seconds
    frame(tmp_path / "IMG_2.jpg", 21.75, -2)
    assert names(grouping.find([tmp_path], tmp_path / "out")) == [["0", "1", "2"]]
    assert names(grouping.find([tmp_path], tmp_path / "out", gap=0.5)) == [["1", "2"]]


def test_cameras_and_sizes_are_told_apart(tmp_path):
    for index, stops in enumerate((0, -2, 2)):
        frame(tmp_path / f"IMG_{index}.jpg", index * 0.25, stops)
        frame(tmp_path / f"IMG_{index + 10}.jpg", index * 0.25, stops, camera="B")
        frame(tmp_path / f"IMG_{index + 20}.jpg", index * 0.25, stops, size=8)
    plan = grouping.find([tmp_path], tmp_path / "out")
    assert sorted(names(plan)) == [["0", "1", "2"], ["10", "11", "12"], ["20", "21", "22"]]


def test_two_cameras_that_say_the_same_are_told_apart_by_their_names(tmp_path):
    for index, stops in enumerate((0, -2, 2)):
        for number in (index, index + 3):
            frame(tmp_path / "two" / f"A7_{number:04}.jpg", number * 3 + index / 4, stops)
            frame(tmp_path / "two" / f"A8_{number:04}.jpg", number * 3 + index / 4 + 0.1, stops)
        frame(tmp_path / "one" / f"{('middle', 'under', 'over')[index]}0001.jpg", index / 4, stops)
    plan = grouping.find([tmp_path / "two"], tmp_path / "out", gap=4)
    assert sorted(names(plan)) == [[f"{a}_000{n + i}" for i in range(3)] for a in ("A7", "A8") for n in (0, 3)]
    assert names(grouping.find([tmp_path / "one"], tmp_path / "out")) == [["middle0001", "under0001", "over0001"]]


def test_two_cameras_with_names_alike_are_told_apart_by_their_counters_or_lenses(tmp_path):
    """Exposures two stops apart would give one bracket of six; people number exposures, too, and cards have gaps."""
    for number, index in itertools.product(range(3), range(3)):
        second, stops = number * 10 + index / 4, (0, -2, 2)[index]
        frame(tmp_path / "two" / f"IMG_{(9997 + 3 * number + index) % 9999 + 1:04}.jpg", second, stops)
        frame(tmp_path / "two" / f"IMG_{5000 + 3 * number + index}.jpg", second + 0.1, stops + 1)
        frame(tmp_path / "lens" / f"{3 * number + index}.jpg", second, stops, lens="F1.8")
        frame(tmp_path / "lens" / f"{3 * number + index}b.jpg", second + 0.1, stops + 1, lens="F4")
        frame(tmp_path / "numbered" / f"{100 * index + number + 100}.jpg", second, stops)
        frame(tmp_path / "gaps" / f"IMG_{1000 + 40 * number + index}.jpg", second, stops)
    for folder, count in (("two", 6), ("lens", 6), ("numbered", 3), ("gaps", 3)):
        found = names(grouping.find([tmp_path / folder], tmp_path / "out"))
        assert len(found) == count and {len(bracket) for bracket in found} == {3}, (folder, found)
        if folder == "two":
            assert all(len({name[0] == "5" for name in bracket}) == 1 for bracket in found), found


def test_a_clock_that_is_put_back(tmp_path):
    """Within a bracket, and so that two brackets have one time; it counts only if every frame says its zone."""
    for index, stops in enumerate((0, -2, 2)):
        second, zone = (index, "+01:30") if index else (1800, "+02:00")
        frame(tmp_path / f"IMG_{index}.jpg", second, stops, zone=zone)
        frame(tmp_path / f"IMG_{index + 3}.jpg", 1800 + index / 4, stops, zone="+01:30")
    plan = grouping.find([tmp_path], tmp_path / "out")
    assert names(plan) == [["0", "1", "2"], ["3", "4", "5"]]
    frame(tmp_path / "IMG_9.jpg", 100)
    assert names(grouping.find([tmp_path], tmp_path / "out")) == [["1", "2"], ["3", "4", "5"]]


def test_brackets_by_count_and_by_name(tmp_path):
    for name in ("a_1", "a_2", "a_10", "b_1", "b_2", "b_10", "c"):
        frame(tmp_path / f"{name}.jpg", None)
    plan = grouping.find([tmp_path], tmp_path / "out", count=3)
    assert [[path.stem for path in group.frames] for group in plan.groups] == [
        ["a_1", "a_2", "a_10"],
        ["b_1", "b_2", "b_10"],
    ]
    assert [name for name, _ in plan.failures] == [str(tmp_path / "c.jpg")]
    plan = grouping.find([tmp_path], tmp_path / "out", pattern=r"(.+)_\d+$")
    assert [group.name for group in plan.groups] == ["a_fused", "b_fused"] and len(plan.left) == 1
    plan = grouping.find([tmp_path], tmp_path / "out")
    assert not plan.groups and all("no capture time" in why for _, why in plan.failures)
    for arguments, message in (
        ({"count": 1}, "--count must be at least 2"),
        ({"count": 2, "pattern": "x"}, "must not be given together"),
        ({"pattern": "("}, "must be a regular expression"),
    ):
        with pytest.raises(InputError, match=message):
            grouping.find([tmp_path], tmp_path / "out", **arguments)
    with pytest.raises(InputError, match="FOLDER must be a folder"):
        grouping.find([tmp_path / "a_1.jpg"], tmp_path / "out")


def test_folders_keep_their_place_and_results_are_no_frames(tmp_path):
    card(tmp_path / "one" / "deep", 1)
    card(tmp_path / "two", 1)
    frame(tmp_path / "two" / "IMG_0_fused.jpg", 1, 5)
    frame(tmp_path / "two" / "out" / "x.jpg", 1, 5)
    frame(tmp_path / "two" / "@eaDir" / "IMG_0.jpg" / "thumbnail.jpg", None)  # of a network storage
    plan = grouping.find([tmp_path / "one", tmp_path / "two"], tmp_path / "two" / "out")
    assert [group.name for group in plan.groups] == ["one/deep/IMG_0_fused", "two/IMG_0_fused"]
    assert plan.failures == []


def test_a_bracket_with_a_damaged_header_is_not_fused_without_it(tmp_path):
    files = card(tmp_path, 3)
    files[4].write_bytes(b"damaged")
    plan = grouping.find([tmp_path], tmp_path / "out")
    assert names(plan) == [["0", "1", "2"], ["6", "7", "8"]]
    assert {Path(name).stem for name, _ in plan.failures} == {"IMG_3", "IMG_4", "IMG_5"}


@pytest.mark.parametrize("brackets, damaged, expected", [(1, 2, []), (1, 1, []), (2, 1, [["3", "4", "5"]])])
def test_nothing_tells_that_a_bracket_beside_a_damaged_file_is_complete(tmp_path, brackets, damaged, expected):
    card(tmp_path, brackets)[damaged].write_bytes(b"")
    assert names(grouping.find([tmp_path], tmp_path / "out")) == expected


# Running


def test_the_plan_writes_nothing(tmp_path, capsys):
    card(tmp_path / "in")
    assert run(tmp_path / "in", "-o", tmp_path / "out", "--dry-run") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "IMG_0_fused.jpg (to be fused): IMG_0.jpg IMG_1.jpg IMG_2.jpg"
    assert out[-1] == "2 brackets to be fused, 0 kept, 0 files left alone"
    assert os.listdir(tmp_path) == ["in"]


def test_a_folder_without_pictures_is_a_mistake(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("none")
    assert run(tmp_path / "in", "-o", tmp_path / "out") == 2
    assert capsys.readouterr().err == f"ffmef batch: {tmp_path / 'in'}: no pictures there\n"
    assert not (tmp_path / "out").exists()


def test_a_batch_goes_on_past_a_broken_file_and_after_an_interruption(tmp_path, capsys):
    files = card(tmp_path / "in", 3)
    whole = files[5].read_bytes()
    files[5].write_bytes(whole[: len(whole) * 2 // 3])  # its header is good
    out = tmp_path / "out"
    assert run(tmp_path / "in", "-o", out, "--jobs", 2) == 1
    said = capsys.readouterr()
    assert "2 brackets fused, 0 kept, 1 failure" in said.out
    assert "IMG_3_fused.jpg: " in said.err and "IMG_5.jpg" in said.err and "Traceback" not in said.err
    assert sorted(os.listdir(out)) == ["IMG_0_fused.jpg", "IMG_6_fused.jpg"]
    assert main(["fuse", *map(str, files[:3]), "-o", str(tmp_path / "alone.jpg")]) == 0
    np.testing.assert_array_equal(
        read_picture(out / "IMG_0_fused.jpg").pixels, read_picture(tmp_path / "alone.jpg").pixels
    )

    files[5].write_bytes(whole)
    (out / "IMG_0_fused.jpg").write_bytes(b"mine")
    assert run(tmp_path / "in", "-o", out, "--jobs", 1) == 0
    assert "1 bracket fused, 2 kept, 0 failures" in capsys.readouterr().out
    assert (out / "IMG_0_fused.jpg").read_bytes() == b"mine"
    assert run(tmp_path / "in", "-o", out, "--jobs", 1, "--overwrite") == 0
    assert read_picture(out / "IMG_0_fused.jpg").pixels.shape == SHAPE


def test_a_process_that_dies_takes_only_its_job_along(tmp_path):
    files = [str(path) for path in card(tmp_path, 3)]
    options = [jobs.Options(), jobs.Options(fusion={"model": Deadly()}), jobs.Options()]
    todo = [batch.Job(tuple(files[3 * i : 3 * i + 3]), str(tmp_path / f"{i}.png"), o) for i, o in enumerate(options)]
    outcomes = {Path(done.job.target).stem: done.failure for done in batch.in_processes(todo, 2)}
    assert outcomes["0"] is None and outcomes["2"] is None and "its process died" in outcomes["1"]


class Deadly:
    """A model that ends its process."""

    def __call__(self, luminance):
        os._exit(9)


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    card(tmp_path / "in", 1)
    (tmp_path / "file").write_text("")
    for options, message in (
        (["-o", tmp_path / "file"], "--output must be a folder"),
        (["-o", tmp_path / "o", "--extension", "gif"], "the extension must be one of"),
        (["-o", tmp_path / "o", "--task", "vif"], "FOLDER must "),
        (["-o", tmp_path / "o", "--task", "vif", "--count", "2"], "--count and --pattern are for exposures and foci"),
        (["-o", tmp_path / "o", "--jobs", "0"], "--jobs must be at least 1"),
        (["-o", tmp_path / "o", "--gap", "soon"], "--gap must be a number of seconds"),
        (["-o", tmp_path / "o", "--weights", "nonsense"], "nonsense"),
        (["-o", tmp_path / "o", "--quality", "50", "--extension", "png"], "--quality is for JPEG"),
        (["-o", ""], "--output must be a folder, got ''"),
        (["-o", "-"], "--output must be a folder, got '-'"),
        (["-o", "/dev/fd/none"], "--output /dev/fd/none cannot be written into"),
        (["-o", tmp_path / "o", "--scheduler", ""], "--scheduler must be an address"),
    ):
        assert run(tmp_path / "in", *options) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "o").exists()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert run(tmp_path / "in", "-o", tmp_path / "o") == 2
    message = f"--output {tmp_path}/o cannot be written into: no permission to write in {tmp_path}\n"
    assert capsys.readouterr().err == f"ffmef batch: {message}"


def test_folders_by_pattern_and_the_third_frame_for_what_moved(tmp_path, capsys, monkeypatch):
    card(tmp_path / "card 1", 1)
    left = tmp_path / "out" / ".ffmef-99999999-00.tmp"  # of a run that was killed
    left.parent.mkdir()
    left.write_bytes(b"half")
    monkeypatch.setattr(batch, "in_processes", lambda todo, _: map(batch.perform, todo))
    assert run(str(tmp_path / "card*"), "-o", tmp_path / "out", "--deghost-from", "3") == 0, capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["IMG_0_fused.jpg"]
    assert run(tmp_path / "card 1", "-o", tmp_path / "out", "--pattern", "nothing") == 1


def test_pairs_of_infrared_and_visible(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batch, "in_processes", lambda jobs, processes: map(batch.perform, jobs))
    rng = np.random.default_rng(0)
    pictures = {}
    for name in ("one", "two"):
        for role in ("VI", "IR"):
            pixels = rng.integers(0, 256, (32, 40, 3) if role == "VI" else (16, 20), np.uint8)
            (tmp_path / "in" / role).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "in" / role / f"{name}.png")
            pictures[name, role] = str(tmp_path / "in" / role / f"{name}.png")
    Image.fromarray(pixels).save(tmp_path / "in" / "VI" / "lonely.png")
    out = tmp_path / "in" / "out"
    options = [tmp_path / "in", "-o", out, "--task", "vif", "--extension", "png", "--jobs", "1"]
    assert run(*options) == 1
    told = capsys.readouterr().err
    assert "lonely: VI/lonely.png has no picture of that name in IR/" in told and "one field of view is assumed" in told
    alone = ["--infrared", pictures["two", "IR"], "--visible", pictures["two", "VI"], "-o", str(tmp_path / "two.png")]
    assert main(["fuse", "--task", "vif", *alone]) == 0
    assert np.array_equal(*(np.asarray(Image.open(path)) for path in (tmp_path / "two.png", out / "two_fused.png")))
    assert run(*options) == 1 and "0 brackets fused, 2 kept, 1 failure" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_interruption_of_a_batch(tmp_path, number, word):
    card(tmp_path / "in", 40)
    command = [sys.executable, "-m", "ffmef", "batch", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--jobs", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "out" / "IMG_0_fused.jpg").exists():
        time.sleep(0.01)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "") and error.count("\n") == 1, error
    assert error.startswith(f"ffmef batch: {word}: ") and error.endswith(" left; run it again to go on\n")
    written = os.listdir(tmp_path / "out")
    assert all(name.endswith("_fused.jpg") for name in written) and len(written) < 40
    for name in written:
        assert read_picture(tmp_path / "out" / name).pixels.shape == SHAPE


def test_a_cluster_of_two_workers(tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    files = card(tmp_path / "in", 3)
    files[8].write_bytes(files[8].read_bytes()[:900])
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        assert run(tmp_path / "in", "-o", tmp_path / "out", "--scheduler", cluster.scheduler_address) == 1
    said = capsys.readouterr()
    assert "2 brackets fused, 0 kept, 1 failure" in said.out and "IMG_8.jpg" in said.err
    assert sorted(os.listdir(tmp_path / "out")) == ["IMG_0_fused.jpg", "IMG_3_fused.jpg"]


def test_no_scheduler_at_the_address(tmp_path, capsys, monkeypatch):
    distributed = pytest.importorskip("distributed")

    def refused(address, **_):
        assert not logging.getLogger("distributed.client").isEnabledFor(logging.ERROR)  # it would log tracebacks
        raise OSError(f"Timed out trying to connect to {address}")

    monkeypatch.setattr(distributed, "Client", refused)
    card(tmp_path / "in", 1)
    assert run(tmp_path / "in", "-o", tmp_path / "out", "--scheduler", "nonsense") == 2
    assert "--scheduler nonsense does not answer: missing port" in capsys.readouterr().err
    assert run(tmp_path / "in", "-o", tmp_path / "out", "--scheduler", "tcp://127.0.0.1:9") == 2
    assert "--scheduler tcp://127.0.0.1:9 does not answer" in capsys.readouterr().err
    assert logging.getLogger("distributed.client").isEnabledFor(logging.ERROR)


def test_processes_by_memory_of_the_gpu(monkeypatch):
    import torch

    here = batch.default_processes()
    assert batch.default_processes("cpu") == here >= 1
    for free, most in ((80 << 30, here), (5 << 30, min(here, 2)), (1 << 30, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 80 << 30))
        assert batch.default_processes("cuda:1") == most
