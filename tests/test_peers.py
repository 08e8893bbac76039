"""The rival networks of the benchmarks: their layout is proven by exact counts, their pieces against plain forms."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import methods, peers
from benchmarks.peers import counting, guided_filter, transmef
from benchmarks.peers.dpe_mef import rgb_to_ycbcr, ycbcr_to_rgb


@pytest.mark.parametrize("name", peers.PEERS)
def test_counts_at_the_reference_size(name):
    peer = peers.PEERS[name]
    with torch.device("meta"):
        network = peer.build().eval()
        images = torch.empty(2, 1, network.channels, 551, 707)
    assert counting.parameter_count(network) == peer.parameters
    assert f"{counting.multiply_adds(network, *images) / 1e9:.3f}" == f"{peer.gmac:.3f}"


def test_counts_of_ours_include_the_filters():
    parameters, gmac = methods.counts("FFMEF")
    assert parameters == 7_662
    assert f"{gmac:.3f}" == "5.674"
    assert methods.counts("Mertens (OpenCV)") == (None, None)


def test_counting_knows_a_convolution_and_a_product():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.Flatten(2), torch.nn.Linear(20, 7))
    assert counting.parameter_count(network) == 3 * 5 * 9 + 5 + 20 * 7 + 7
    assert counting.multiply_adds(network, torch.rand(1, 3, 4, 5)) == 20 * 3 * 5 * 9 + 5 * 20 * 7


def strengthened(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network with larger weights: the initial ones let TransMEF round everything to one grey level."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight *= 2.5
    return network


@pytest.mark.parametrize("name", peers.PEERS)
def test_output_shape_range_and_seed(name):
    network, again = strengthened(peers.build(name)), strengthened(peers.build(name))
    shape = (2, 1, network.channels, 37, 50)
    first, second = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fused = network(first, second)
        assert torch.equal(fused, again(first, second))
        assert not torch.equal(fused, network(second, second)), "the first exposure does not reach the output"
        assert not torch.equal(fused, network(first, first)), "the second exposure does not reach the output"
    assert fused.shape == first.shape
    assert fused.isfinite().all()
    if name != "DeepFuse (paper)":  # its tanh reaches down to -1
        assert fused.min() >= 0 and fused.max() <= 1


def test_build_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    peers.build("MEFLUT")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("radius", [1, 2])
def test_box_sum_is_a_window_cut_at_the_border(radius):
    x = torch.rand(2, 1, 7, 9, dtype=torch.float64)
    size = 2 * radius + 1
    expected = F.avg_pool2d(F.pad(x, (radius,) * 4), size, stride=1) * size * size
    torch.testing.assert_close(guided_filter.box_sum(x, radius), expected)


def test_box_sum_refuses_an_image_smaller_than_its_window():
    with pytest.raises(ValueError, match="sides over 4, got 4"):
        guided_filter.box_sum(torch.rand(1, 1, 4, 9), 2)


def test_guided_filter_reproduces_a_linear_function_of_the_guide():
    guide, full = torch.rand(1, 1, 16, 20, dtype=torch.float64), torch.rand(1, 1, 48, 60, dtype=torch.float64)
    result = guided_filter.fast_guided_filter(guide, 3 * guide - 1, full, radius=1, eps=1e-12)
    torch.testing.assert_close(result, 3 * full - 1, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "size, expected", [((551, 707), (128, 164)), ((707, 551), (164, 128)), ((200, 200), (128, 128))]
)
def test_shrink_brings_the_short_side_to_128(size, expected):
    assert guided_filter.shrink(torch.rand(1, 1, *size), 128).shape[-2:] == expected


@pytest.mark.parametrize("size", [(300, 257), (256, 300), (40, 500)])
def test_blocks_see_reflected_borders(size):
    image = torch.rand(1, 1, *size)
    rows, columns = (256 - side % 256 for side in size)
    expected = np.pad(image[0, 0].numpy(), ((0, rows), (0, columns)), mode="reflect")
    np.testing.assert_array_equal(transmef.extend(image)[0, 0].numpy(), expected)


def test_transformer_tokens_return_to_their_place():
    transformer = transmef.Transformer().eval()
    for layer in (*transformer.attention, *transformer.feed_forward):
        for parameter in layer.parameters():
            parameter.data.zero_()
    transformer.embed.weight.data.copy_(torch.eye(256))
    transformer.embed.bias.data.zero_()
    block = torch.rand(1, 1, 256, 256)
    with torch.no_grad():
        torch.testing.assert_close(transformer(block), block)


def test_full_range_colour_round_trip():
    rgb = torch.rand(1, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(ycbcr_to_rgb(rgb_to_ycbcr(rgb)), rgb)
    grey = torch.full((1, 3, 1, 1), 0.25)
    torch.testing.assert_close(rgb_to_ycbcr(grey).flatten(), torch.tensor([0.25, 0.5, 0.5]))
