"""``ffmef export``: what it writes runs elsewhere and gives the network's numbers; what it cannot write it says."""

from __future__ import annotations

import pytest
import torch

from ffmef import cli, models


@pytest.fixture(scope="module")
def luminance():
    return torch.rand(1, 2, 45, 70, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weights", ["mef", "mef-pyramid"])
def test_onnx_of_bundled_weights_at_another_size(weights, luminance, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = tmp_path / "net.onnx"
    assert cli.main(["export", "--weights", weights, "-o", str(path)]) == 0
    assert "onnxruntime differs from the network by at most" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(path)
    assert [(i.name, i.shape[:2]) for i in session.get_inputs()] == [("luminance", [1, 2])]
    (found,) = session.run(["fused"], {"luminance": luminance.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), models.load(weights)(luminance), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("weights", "count"), [("mef", 2), ("mef-pyramid", 3)])
def test_program_of_bundled_weights_at_another_size(weights, count, luminance, tmp_path):
    path = tmp_path / "net.pt2"
    assert cli.main(["export", "--weights", weights, "-o", str(path), "--count", str(count)]) == 0
    given = torch.cat([luminance, luminance.flip(1)], 1)[:, :count]
    with torch.no_grad():
        found = torch.export.load(path).module()(given)
        torch.testing.assert_close(found, models.load(weights)(given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--weights", "mef", "-o", "net.pb"], "output must end in .onnx or .pt2, got net.pb"),
        (["--weights", "mef", "-o", "net.onnx", "--aot"], "output must end in .pt2 with --aot, got net.onnx"),
        (["--weights", "mef", "-o", "net.pt2", "--count", "1"], "count must be from 2 to 100, got 1"),
        (["--weights", "mef", "-o", "net.pt2", "--count", "3"], "count must be 2 for the network of mef, got 3"),
        (["--weights", "mef", "-o", "no/net.pt2"], "output must be in a folder that exists, got no/net.pt2"),
        (["--weights", "none-such", "-o", "net.pt2"], "none-such"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert list(tmp_path.iterdir()) == []
