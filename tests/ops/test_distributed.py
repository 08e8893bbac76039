"""The operators on several processes: DTensors sharded over what is independent, DDP and FSDP2."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import distributed, multiprocessing, nn

from ffmef.nn import AdaptiveFuse
from ffmef.ops import adaptive_fuse, predict_and_fuse, pyramid_fuse

WORLD = 2
if not distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)


def adaptive(images, fine, coarse, alphas):
    return adaptive_fuse(images, [fine, coarse], alphas)


def predict(hidden, weight, bias, images, alphas):
    return predict_and_fuse([hidden], [weight], [bias], images, alphas)


def rand(*shape):
    return torch.rand(shape, dtype=torch.float64)


def cases():
    """Return (name, function, shapes, dimensions sharded, dimension of the result or None for a sum)."""
    adaptive_shapes = [(3, 3, 3, 8, 9), (3, 3, 9, 8, 9), (3, 3, 1, 4, 3), (2,)]  # uneven shards
    pyramid_shapes = [(3, 3, 3, 9, 17), (3, 2, 3, 2, 3), (3, 3, 2, 3)]
    predict_shapes = [(3, 3, 4, 8, 9), (9, 4), (9,), (3, 3, 1, 8, 9), (1,)]
    yield "whole", adaptive, adaptive_shapes, (None,) * 4, "whole"
    yield "batch", adaptive, adaptive_shapes, (0, 0, 0, None), 0
    yield "images alone", adaptive, adaptive_shapes, (0, None, None, None), 0
    yield "filters alone", adaptive, adaptive_shapes, (None, -5, None, None), 0
    yield "images", adaptive, adaptive_shapes, (1, 1, 1, None), "sum"
    yield "channels", adaptive, adaptive_shapes, (2, None, None, None), 1
    yield "a batch of one", adaptive, [(1, *shape[1:]) for shape in adaptive_shapes[:3]] + [(2,)], (0, 0, 0, None), 0
    yield "one image", adaptive, [(2, 1, *shape[2:]) for shape in adaptive_shapes[:3]] + [(2,)], (1, 1, 1, None), "sum"
    yield "pyramid batch", pyramid_fuse, pyramid_shapes, (0, 0, 0), 0
    yield "pyramid images", pyramid_fuse, pyramid_shapes, (1, 2, 1), "sum"
    yield "pyramid channels", pyramid_fuse, pyramid_shapes, (2, None, None), 1
    yield "predict batch", predict, predict_shapes, (0, None, None, 0, None), 0
    yield "predict images", predict, predict_shapes, (1, None, None, 1, None), "sum"


def refusals():
    shapes = [(2, 2, 3, 8, 8), (2, 2, 9, 8, 8), (2, 2, 1, 4, 4), (2,)]
    yield adaptive, shapes, (3, None, None, None), "images must be sharded over the batch"
    yield adaptive, shapes, (None, 2, None, None), r"filters\[0\] must be sharded over the batch"
    yield adaptive, shapes, (0, 1, None, None), r"filters\[0\] must be sharded over the batch like"
    yield adaptive, shapes, (None, None, None, 0), "alphas must be replicated"
    yield adaptive, shapes, (None, "plain", None, None), r"filters\[0\] must be a DTensor"


def shard(tensors, dims, mesh):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    return [
        t.clone() if d == "plain" else distribute_tensor(t.clone(), mesh, [Replicate() if d is None else Shard(d)])
        for t, d in zip(tensors, dims, strict=True)
    ]


def check_dtensors(mesh):
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    for name, function, shapes, dims, result in cases():
        tensors = [rand(*shape).requires_grad_() for shape in shapes]
        expected = function(*tensors)
        grad = torch.rand_like(expected)
        sharded = [t.detach().requires_grad_() for t in shard([t.detach() for t in tensors], dims, mesh)]
        out = function(*sharded)
        placement = {"whole": Replicate(), "sum": Partial()}.get(result) or Shard(result)
        assert out.placements == (placement,), (name, out.placements)
        torch.testing.assert_close(out.full_tensor(), expected, msg=name)
        found = torch.autograd.grad(out, sharded, distribute_tensor(grad, mesh, [Replicate()]))
        for wanted, got, own in zip(torch.autograd.grad(expected, tensors, grad), found, sharded, strict=True):
            assert got.placements == own.placements, name
            torch.testing.assert_close(got.full_tensor(), wanted, msg=name)
    for function, shapes, dims, message in refusals():
        with pytest.raises(ValueError, match=message):
            function(*shard([rand(*shape) for shape in shapes], dims, mesh))
    # Weights that are made inside are the same for all processes.
    images, filters = rand(4, 2, 3, 8, 9), rand(4, 2, 9, 8, 9)
    out = adaptive_fuse(*(x if i == 0 else [x] for i, x in enumerate(shard([images, filters], (0, 0), mesh))), [0.5])
    torch.testing.assert_close(out.full_tensor(), adaptive_fuse(images, [filters], [0.5]))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(2, 20, 3, padding=1)
        self.fuse = AdaptiveFuse((1, 3))

    def forward(self, images):
        return self.fuse(images, self.head(images).unflatten(1, (2, 10)).split([1, 9], 2))


def check_data_parallel(rank):
    from torch.distributed.fsdp import fully_shard

    network, images = Network().double(), rand(4, 2, 8, 9)
    copies = nn.parallel.DistributedDataParallel(copy.deepcopy(network)), fully_shard(copy.deepcopy(network))
    network(images).square().mean().backward()
    for parallel in copies:
        parallel(images[2 * rank : 2 * rank + 2]).square().mean().backward()
        for wanted, got in zip(network.parameters(), parallel.parameters(), strict=True):
            grad = got.grad.full_tensor() if hasattr(got.grad, "full_tensor") else got.grad
            torch.testing.assert_close(grad, wanted.grad)


def work(rank, file):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=WORLD)
    try:
        from torch.distributed.tensor import init_device_mesh

        check_dtensors(init_device_mesh("cpu", (WORLD,)))
        check_data_parallel(rank)
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_compute_what_one_does(tmp_path):
    multiprocessing.spawn(work, (str(tmp_path / "store"),), nprocs=WORLD)
