"""``ffmef selftest``: the page it prints, and that it sees a kernel that is wrong."""

from __future__ import annotations

import pytest
import torch

from ffmef import _loader, checks, cli, ops
from ffmef.checks import pictures
from ffmef.models.pyramid import PyramidFFMEF
from ffmef.ops import picture_colour


def test_quick_selftest_passes_and_prints_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selftest", "--device", "cpu", "--backend", "reference", "--quick"]) == 0
    page = capsys.readouterr().out
    count = len(checks.matrix(quick=True))
    assert f"{count} of {count} problems right and repeatable" in page
    assert page.endswith("selftest: passed\n") and f"torch {torch.__version__}" in page


def test_selftest_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = ops.adaptive_fuse
    monkeypatch.setattr(checks, "matrix", lambda quick: [checks.FilterProblem("float32", 1, 2, 1, 4, 5, "zeros", (3,))])
    monkeypatch.setattr(ops, "adaptive_fuse", lambda *args, **options: right(*args, **options) * (1 + 1e-5))
    assert cli.main(["selftest", "--device", "cpu", "--backend", "reference", "--quick"]) == 1
    assert "FAILED float32 1x2x1x4x5 zeros k=3 contiguous" in capsys.readouterr().out


def test_selftest_finds_results_that_change(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right, calls = ops.adaptive_fuse, []

    def restless(*args: object, **options: object) -> torch.Tensor:
        calls.append(1)
        return right(*args, **options) * (1 + 1e-7 * len(calls))

    monkeypatch.setattr(checks, "matrix", lambda quick: [checks.FilterProblem("float32", 1, 2, 1, 4, 5, "zeros", (3,))])
    monkeypatch.setattr(ops, "adaptive_fuse", restless)
    assert cli.main(["selftest", "--device", "cpu", "--backend", "reference", "--quick"]) == 1
    assert "another result when run again" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is visible")
def test_without_a_gpu_the_reason_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selftest", "--device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no GPU is visible to torch" in error


def test_an_unknown_backend_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selftest", "--device", "cpu", "--backend", "metal"]) == 2
    assert "'metal'" in capsys.readouterr().err


def test_floor_is_the_traffic_of_the_paper_s_operator() -> None:
    # (1 + 9 + 25) taps of two images and three pictures, 4 bytes each: 280 + 12.
    assert checks.bytes_moved(1, 1, 4) == 292


@pytest.mark.skipif(_loader.cpu_missing is not None, reason=str(_loader.cpu_missing))
def test_the_network_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, wrong = checks.check_others("cpu", "cpu", interpreted=True)
    assert not wrong and lines == ["  1 of 1 problems of predict_and_fuse and ffmef_forward right and repeatable"]
    right = ops.ffmef_forward
    monkeypatch.setattr(ops, "ffmef_forward", lambda *args, **options: right(*args, **options) + 2e-4)
    lines, wrong = checks.check_others("cpu", "cpu", interpreted=True)
    assert wrong and "FAILED ffmef_forward 3 x 5: error" in lines[1]


@pytest.mark.skipif(_loader.cpu_missing is not None, reason=str(_loader.cpu_missing))
def test_pictures_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, wrong = checks.check_pictures("cpu", "cpu")
    assert not wrong and lines == ["  43 of 43 fusions of pictures right and repeatable"]
    assert checks.check_pictures("triton", "cuda") == ([], False)
    right = PyramidFFMEF.fuse_rgb
    monkeypatch.setattr(pictures, "fusions", lambda: [pictures.Fusion("ffmef")])
    monkeypatch.setattr(pictures, "problems", lambda device: [pictures.PictureProblem("uint8", 2, 12, 20, brackets=2)])
    colour = picture_colour.recoloured
    monkeypatch.setattr(picture_colour, "recoloured", lambda *args: colour(*args) // 2)

    def second_bracket_is_the_first(model: PyramidFFMEF, *args: object) -> torch.Tensor:
        fused = right(model, *args)
        return fused if fused.dim() == 3 else fused[:1].expand_as(fused).clone()

    monkeypatch.setattr(PyramidFFMEF, "fuse_rgb", second_bracket_is_the_first)
    lines, wrong = checks.check_pictures("cpu", "cpu")
    assert wrong and "FAILED pictures uint8 2 x 2 x 12 x 20: error" in lines[1]
    assert "FAILED fuse ffmef mef uint8: error" in lines[2]


def test_a_wrong_prediction_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.predict_and_fuse
    problem = checks.FilterProblem("float32", 1, 2, 1, 4, 5, "zeros", (3,))
    assert checks.prediction_error(problem, "cpu", "reference") <= 1
    monkeypatch.setattr(ops, "predict_and_fuse", lambda *args, **options: right(*args, **options) * (1 + 1e-5))
    assert checks.prediction_error(problem, "cpu", "reference") > 1


def test_processes_share_a_matrix() -> None:
    problems = [checks.FilterProblem("float32", 1, 2, 1, 4, width, "zeros", (3,)) for width in (5, 6, 7)]
    alone = checks.check("reference", "cpu", problems)
    assert checks.check_in_processes("reference", "cpu", problems, 2) == alone
    assert alone.passed == 3
    # They also bring back their failures.
    shared = checks.check_in_processes("cuda", "cpu", problems, 2)
    assert shared.passed == 0
    assert sorted(shared.failures) == sorted(checks.check("cuda", "cpu", problems).failures)
    assert checks.worker_count("triton", "cpu") == checks.worker_count("cuda", "cuda") == 1
