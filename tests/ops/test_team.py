"""Operators that are chains of steps, on teams of threads: the same bits for any number of threads and of callers."""

from __future__ import annotations

import concurrent.futures

import pytest
import torch

from ffmef.models import FFMEF, PyramidFFMEF
from ffmef.ops import backends

pytestmark = pytest.mark.skipif(backends()["cpu"] is not None, reason=str(backends()["cpu"]))


@pytest.fixture(autouse=True)
def one_thread_afterwards():
    yield
    torch.set_num_threads(1)


def calls():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network, pyramid = FFMEF().eval().requires_grad_(False), PyramidFFMEF().eval().requires_grad_(False)
    luminance = torch.rand(1, 2, 200, 90, generator=generator)
    pictures = [torch.randint(0, 256, (150, 97, 3), dtype=torch.uint8, generator=generator) for _ in range(3)]
    return [lambda: network(luminance), lambda: pyramid.fuse_rgb(pictures)]


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_more_threads_than_processors_change_nothing(threads):
    for call in calls():
        torch.set_num_threads(1)
        alone = call()
        torch.set_num_threads(threads)
        for _ in range(20):
            assert torch.equal(call(), alone)


def test_callers_at_the_same_time_do_not_disturb_each_other():
    torch.set_num_threads(2)
    for call in calls():
        alone = call()

        def repeated(_):
            torch.set_num_threads(2)
            return [call() for _ in range(10)]

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            results = [result for several in pool.map(repeated, range(4)) for result in several]
        assert len(results) == 40 and all(torch.equal(result, alone) for result in results)
