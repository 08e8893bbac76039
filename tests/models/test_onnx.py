"""Networks with the operators as ONNX: standard operators, any size, the network's own numbers in onnxruntime."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ffmef.models import PyramidFFMEF
from ffmef.ops import adaptive_fuse, predict_and_fuse, pyramid_fuse

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")


class Adaptive(nn.Module):
    """Levels at full resolution and on a coarser grid, filters by a convolution."""

    def __init__(self, padding_mode, sizes=(1, 3), channels=1, stride=1):
        super().__init__()
        self.padding_mode, self.taps, self.channels = padding_mode, [k * k for k in sizes], channels
        self.head = nn.Conv2d(2 * channels, 2 * sum(self.taps), stride, stride=stride)
        self.alphas = nn.Parameter(torch.rand(len(sizes)))

    def forward(self, images):
        filters = self.head(images.flatten(1, 2)).unflatten(1, (2, -1)).split(self.taps, 2)
        return adaptive_fuse(images, filters, self.alphas, padding_mode=self.padding_mode)


class Pyramid(nn.Module):
    def __init__(self, bands):
        super().__init__()
        self.head = nn.Conv2d(2, 2 * (bands + 1), 8, stride=8)

    def forward(self, images):
        down, right = -images.shape[2] % 8, -images.shape[3] % 8
        planes = self.head(nn.functional.pad(images, (0, right, 0, down))).unflatten(1, (-1, 2))
        return pyramid_fuse(images, planes[:, 1:], planes[:, 0])


def compare(network, shape, sizes, path, **options):
    """Export with free height and width, then compare at every size."""
    network = network.eval()
    axes = {len(shape) - 2: torch.export.Dim("height", min=2), len(shape) - 1: torch.export.Dim("width", min=2)}
    with torch.no_grad():
        program = torch.onnx.export(
            network, (torch.rand(shape),), dynamo=True, verbose=False, dynamic_shapes=(axes,), **options
        )
        program.save(path)
        assert {node.domain for node in program.model.graph} <= {"", "ai.onnx"}
        session = onnxruntime.InferenceSession(path)
        for height, width in sizes:
            images = torch.rand(*shape[:-2], height, width)
            found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
            torch.testing.assert_close(torch.from_numpy(found), network(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("padding_mode", "options"),
    [
        ("zeros", {"sizes": (1, 3, 5), "channels": 3}),
        ("replicate", {}),
        ("reflect", {"sizes": (7,)}),  # radius 3 bounces twice in images of 3 x 2
        ("zeros", {"stride": 4}),
    ],
)
def test_adaptive_fuse(padding_mode, options, tmp_path):
    shape = (1, 2, options.get("channels", 1), 24, 20)
    sizes = [(24, 20), (33, 47)] + ([(3, 2)] if "stride" not in options else [])
    compare(Adaptive(padding_mode, **options), shape, sizes, tmp_path / "a.onnx")


@pytest.mark.parametrize("bands", [0, 3])
def test_pyramid_fuse(bands, tmp_path):
    compare(Pyramid(bands), (1, 2, 36, 44), [(36, 44), (33, 47), (8, 9)], tmp_path / "a.onnx")


def test_the_table_is_what_exporters_take_too(tmp_path):
    import ffmef.onnx

    table = ffmef.onnx.translation_table()
    assert torch.ops.ffmef.adaptive_fuse.default in table
    assert torch.ops.ffmef.pyramid_fuse.default in table
    compare(Adaptive("zeros"), (1, 2, 1, 9, 8), [(10, 11)], tmp_path / "a.onnx", custom_translation_table=table)


def test_circular_padding(tmp_path):
    compare(Adaptive("circular", sizes=(5,)), (1, 2, 1, 9, 8), [(10, 11), (3, 2)], tmp_path / "a.onnx")


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
def test_predict_and_fuse(padding_mode, tmp_path):
    class Predict(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Conv2d(3, 4, 1)
            self.weight = nn.ParameterList([torch.rand(k * k, 4) for k in (1, 3)])
            self.bias = nn.ParameterList([torch.rand(k * k) for k in (1, 3)])

        def forward(self, images):
            hidden = self.hidden(images.flatten(0, 1)).unflatten(0, images.shape[:2])
            options = {"padding_mode": padding_mode}
            return predict_and_fuse([hidden] * 2, list(self.weight), list(self.bias), images, [0.25, 0.75], **options)

    compare(Predict(), (1, 2, 3, 9, 8), [(10, 11), (3, 4)], tmp_path / "a.onnx")


@pytest.mark.parametrize(
    "options",
    [{}, {"bands": 2, "octaves": 1}, {"bands": 0, "octaves": 0, "channels": (8,)}],
    ids=["default", "two bands", "no band"],
)
def test_pyramid_model(options, tmp_path):
    """At any size, for any number of pictures, in either grad mode."""
    torch.manual_seed(0)
    model = PyramidFFMEF(**{"channels": (16, 16), **options}).eval()
    torch.nn.init.normal_(model.predictor.head.weight, std=0.03)
    names = ("batch", "count", "height", "width")
    axes = {i: torch.export.Dim(name, min=2 if i == 1 else 1, max=4096) for i, name in enumerate(names)}
    with torch.set_grad_enabled(not options):
        program = torch.onnx.export(
            model, (torch.rand(2, 3, 36, 44),), dynamo=True, verbose=False, dynamic_shapes=(axes,)
        )
    assert {node.domain for node in program.model.graph} == {""}
    program.save(tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for shape in ((2, 3, 36, 44), (1, 2, 33, 47), (1, 5, 64, 96), (2, 2, 3, 1)):
        luminance = torch.rand(shape)
        found = session.run(None, {session.get_inputs()[0].name: luminance.numpy()})[0]
        with torch.no_grad():
            expected = model.double().fuse(luminance.double())[0]
        torch.testing.assert_close(torch.from_numpy(found).double(), expected, atol=1e-5, rtol=1e-5)
        model.float()
