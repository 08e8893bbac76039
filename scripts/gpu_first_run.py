"""The steps of scripts/gpu_first_run.sh: python scripts/gpu_first_run.py STEP[,STEP...] [ARGUMENTS].

The shell script runs each step as a process, so a fault in one spares the others. Results are lines of
$OUT/results.jsonl.
With FFMEF_RUN_CPU=1 every step runs on the CPU at tiny sizes, which keeps the script working where there is no GPU.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from ffmef import measure

CPU = os.environ.get("FFMEF_RUN_CPU") == "1"
DEVICE = "cpu" if CPU else "cuda"
BACKENDS = ("cpu",) if CPU else tuple(os.environ.get("FFMEF_RUN_BACKENDS", "cuda triton").split())
OUT = Path(os.environ.get("OUT", "."))
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SIZES = {"512": (512, 512), "551x707": (551, 707), "1080p": (1080, 1920), "12MP": (3000, 4000)}
if CPU:
    SIZES = {"512": (16, 24), "551x707": (16, 23), "1080p": (24, 32), "12MP": (24, 40)}
KERNEL_SIZES = (1, 3, 5)
SCALE, BANDS = 8, 3


# ---- what steps share ----


def attempt(what: str, function: Callable):
    """Return ``function()``; if it fails, record and report that, and go on with the step."""
    try:
        return function()
    except Exception as error:
        print(f"FAILED {what}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}", flush=True)
        with (OUT / "failures.txt").open("a") as file:
            file.write(f"---- {what}\n{traceback.format_exc()}\n")
        return None


def keep(what: str, **record) -> None:
    """Print a record and append it to the results."""
    print(what, " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in record.items()), flush=True)
    with (OUT / "results.jsonl").open("a") as file:
        file.write(json.dumps({"what": what, **record}) + "\n")


def times(run: Callable, seconds: float = 0.15) -> dict[str, float]:
    """Return milliseconds per call: ``ms`` by the device's clock, ``called_ms`` as Python sees it, end included."""
    for _ in range(1 if CPU else 2):
        run()
    one = measure.seconds(run, DEVICE)
    rounds = 1 if CPU else measure.rounds_within(seconds, one, 3, 30)
    (timings,) = measure.take_turns([run], rounds, DEVICE)
    called = 1e3 * statistics.median(timings.wall)
    return {"ms": called if CPU else 1e3 * statistics.median(timings.device), "called_ms": called}


def timed(what: str, run: Callable, **record) -> None:
    """Keep the times of a call, or its failure."""
    attempt(f"{what} {record}", lambda: keep(what, **record, **times(run)))


def replaying(run: Callable) -> Callable:
    """Return a callable that replays one captured call."""
    if CPU:
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.rand(shape, generator=generator, device=DEVICE).to(dtype)


def fusion(size: tuple[int, int], dtype: torch.dtype = torch.float32):
    """Return images, filters, alphas and a gradient of the output."""
    filters = [draw(1, 2, k * k, *size, dtype=dtype, seed=k) for k in KERNEL_SIZES]
    alphas = torch.tensor([0.6, 0.3, 0.1], device=DEVICE)
    return draw(1, 2, 1, *size, dtype=dtype), filters, alphas, draw(1, 1, *size, dtype=dtype, seed=9)


def heads() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return weights and biases of predict_and_fuse."""
    return [draw(k * k, k * k, seed=k) for k in KERNEL_SIZES], [draw(k * k, seed=k) for k in KERNEL_SIZES]


def cells(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights and base of pyramid_fuse."""
    grid = -(-size[0] // SCALE), -(-size[1] // SCALE)
    return draw(1, BANDS, 2, *grid), draw(1, 2, *grid)


def backward_of(operator: str, backend: str):
    """Return the dispatcher's operator that computes only the chosen gradients."""
    return getattr(torch.ops.ffmef, f"{operator}{'_triton' if backend == 'triton' else ''}_backward")


# ---- is it right? ----


def step_facts() -> None:
    """What runs here, with which versions."""
    import platform

    import ffmef
    from ffmef.commands import info

    print(platform.python_version(), torch.__version__, torch.version.cuda, ffmef.__file__)
    print("\n".join(info.lines()))
    if not CPU:
        p = torch.cuda.get_device_properties(0)
        print(
            p.name,
            f"sm_{p.major}{p.minor}",
            p.multi_processor_count,
            "multiprocessors",
            p.L2_cache_size,
            p.total_memory,
        )
    print("TF32: cudnn", torch.backends.cudnn.allow_tf32, "matmul", torch.backends.cuda.matmul.allow_tf32)


def step_quick() -> None:
    """A tenth of the matrix, on the backend that users get."""
    step_check(BACKENDS[0], "0", "12", "30")


def step_check(backend: str, part: str = "0", parts: str = "1", seconds: str = "140") -> None:
    """Check problems part, part + parts, ... of the selftest's matrix, float32 first, until the time is up."""
    from ffmef import checks
    from ffmef.commands import selftest

    order = tuple(checks.TOLERANCE)
    problems = sorted(checks.matrix(quick=False), key=lambda p: order.index(p.dtype))[int(part) :: int(parts)]
    started, passed, worst, reached = time.perf_counter(), 0, 0.0, 0
    for problem in problems:
        if time.perf_counter() - started > float(seconds):
            break
        tally = checks.check(backend, DEVICE, [problem])
        reached, passed, worst = reached + 1, passed + tally.passed, max(worst, tally.worst)
        for failure in tally.failures:
            print("  FAILED", failure, flush=True)
    print(
        f"{backend} {part}/{parts}: {passed} of {reached} right and repeatable, {len(problems) - reached} not reached, "
        f"worst {worst:.2f} of what is allowed, {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    if part == "0" and not CPU:
        print(f"{backend}: captured in a CUDA graph:", attempt("graph", lambda: selftest.graph_capture(backend)))
        print("\n".join(checks.check_others(backend, DEVICE, False)[0]), flush=True)


def step_sanitize() -> None:
    """Every CUDA kernel once or twice at small odd sizes: for compute-sanitizer."""
    from ffmef import checks
    from ffmef.checks.judge import results
    from ffmef.checks.problems import predictions
    from ffmef.ops import adaptive_fuse, picture_colour

    backend = BACKENDS[0]
    problems = [
        checks.FilterProblem("float32", 1, 2, 1, 37, 144, "reflect", (1, 3, 5)),
        checks.FilterProblem("float16", 1, 2, 3, 18, 72, "zeros", (3, 7)),
        checks.FilterProblem("float32", 1, 2, 1, 19, 67, "replicate", (1, 3, 5)),
        checks.FilterProblem("float64", 1, 1, 2, 12, 40, "zeros", (9, 3)),
        checks.FilterProblem("float32", 1, 2, 1, 5, 24, "zeros", (1, 3) * 8 + (5,)),
        checks.PyramidProblem("float32", 1, 2, 1, 77, 144, 3, 8),
        checks.PyramidProblem("float16", 1, 3, 2, 37, 67, 3, 16),
        checks.PyramidProblem("float32", 1, 2, 1, 70, 45, 5, 32),
        checks.PyramidProblem("float32", 1, 2, 1, 5, 7, 1, 2, layout="transposed"),
        checks.PyramidProblem("float32", 8, 1, 8, 65, 68, 3, 8),  # large tiles
    ]
    for problem in problems:
        found = results(problem, DEVICE, backend)
        print(problem, "finite" if all(bool(part.isfinite().all()) for part in found) else "NOT FINITE", flush=True)
    images = draw(1, 2, 1, 37, 51).requires_grad_()
    filters = [draw(1, 2, k * k, 5, 7).requires_grad_() for k in (1, 3)]
    alphas = torch.ones(2, device=DEVICE, requires_grad=True)
    fused = adaptive_fuse(images, filters, alphas, backend=backend)
    torch.autograd.grad(fused.sum(), [images, *filters, alphas])
    if not CPU:
        for problem in predictions(False)[:3]:
            checks.prediction_error(problem, DEVICE, backend)
    from ffmef import models
    from ffmef.adjust import Adjustments

    model = models.load("mef-pyramid").to(DEVICE)
    for size, count in (((37, 51), 3), ((40, 136), 2)):
        frames = [torch.from_numpy(frame).to(DEVICE) for frame in bracket(size, count, True)]
        masks = [torch.full(size, 200, dtype=torch.uint8, device=DEVICE)] * count
        for usable, adjust in ((None, Adjustments()), (masks, Adjustments(0.3, 0.2, 0.1, 1.0))):
            fused = model.fuse_rgb(frames, usable, adjust)
            print("pyramid", size, count, fused.float().mean().item())
        fused = model.fuse_rgb([torch.stack([frame, frame // 2, frame]) for frame in frames])
        print("three brackets", size, count, fused.float().mean().item())
    with torch.inference_mode():
        print("pyramid on luminance", model(draw(2, 2, 35, 70)).mean().item())
    with torch.inference_mode():
        for sizes, height, width in (((1,), 19, 37), ((3, 5), 35, 66)):
            fused = engine_of(backend, engine_model(sizes))(draw(2, 2, height, width))
            print(f"ffmef_forward {height} x {width}", "finite" if bool(fused.isfinite().all()) else "NOT FINITE")
    for dtype in ("uint8", "uint16", "float32", "float64"):
        frames = [torch.from_numpy(f.astype(dtype)).to(DEVICE) for f in bracket((37, 51), 2, True, "float32")]
        for given in (frames, [frames[0][..., 0].contiguous(), frames[1]]):
            y = picture_colour.sample_luminance(given)
            joined = picture_colour.recoloured(y[0], [f for f in given if f.dim() == 3], given[0].dtype)
            print("colour", dtype, y.mean().item(), joined.float().mean().item())
    print("sanitize: done")


def step_hazards() -> None:
    """What emulation cannot show: streams, repetition, compilation."""
    from ffmef.ops import adaptive_fuse, pyramid_fuse

    backend, count = BACKENDS[0], 3 if CPU else 50
    images, filters, alphas, grad = fusion((64, 96))
    expected = adaptive_fuse(images, filters, alphas, backend=backend)
    if not CPU:
        side, wrong = torch.cuda.Stream(), 0
        for _ in range(count):
            with torch.cuda.stream(side):
                torch.cuda._sleep(2_000_000)
                late = images * 2
                result = adaptive_fuse(late, filters, alphas, backend=backend)
                del late  # its memory may go only to this stream's next call
            side.synchronize()
            wrong += not torch.equal(result, 2 * expected)
        print("on another stream: wrong results", wrong, "of", count)
    leaves = [t.detach().requires_grad_() for t in (images, *filters, alphas)]
    fused = adaptive_fuse(leaves[0], leaves[1:-1], leaves[-1], backend=backend)
    runs = [torch.autograd.grad(fused, leaves, grad, retain_graph=True) for _ in range(count)]
    print("gradients the same each time:", all(all(map(torch.equal, runs[0], run)) for run in runs))
    weights, base = cells((64, 96))
    runs = [pyramid_fuse(images, weights, base, scale=SCALE, backend=backend) for _ in range(count)]
    print("pyramid_fuse the same each time:", all(torch.equal(runs[0], run) for run in runs))
    compiled = torch.compile(
        lambda i, f, a: adaptive_fuse(i * 1, f, a) + 1, fullgraph=True, backend="eager" if CPU else "inductor"
    )
    close = attempt("torch.compile", lambda: torch.allclose(compiled(images, filters, alphas), expected + 1))
    print("torch.compile(fullgraph=True):", close)


def step_capture() -> None:
    """A first call inside a capture, when kernels are loaded late: in its own process, which a failure may spoil."""
    from ffmef.ops import adaptive_fuse

    if CPU:
        return
    images, filters, alphas, _ = fusion((64, 96))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = adaptive_fuse(images, filters, alphas, backend="cuda")
    graph.replay()
    torch.cuda.synchronize()
    equal = torch.equal(captured, adaptive_fuse(images, filters, alphas, backend="cuda"))
    print("captured without a call before:", equal)


# ---- how fast is it? ----


def bandwidth() -> float:
    """Return the GB/s of a copy, the floor against which everything is measured."""
    source = torch.rand(2**20 if CPU else 2**28, device=DEVICE)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / times(lambda: target.copy_(source))["ms"] / 1e6
    read = source.nbytes / times(lambda: source.sum())["ms"] / 1e6
    keep("bandwidth", copy_GBps=copy, read_GBps=read)
    return copy


def step_operator() -> None:
    """adaptive_fuse: the forward pass and each gradient, in units of the floor."""
    from ffmef.ops import adaptive_fuse

    copy = bandwidth()
    for (size_name, size), (dtype_name, dtype) in itertools.product(SIZES.items(), DTYPES.items()):
        images, filters, alphas, grad = fusion(size, dtype)
        floor = 73 * size[0] * size[1] * dtype.itemsize / copy / 1e6  # two images, 70 planes of filters, one plane out
        for backend in BACKENDS:
            operator = backward_of("adaptive_fuse", backend)

            def gradient(of_images: bool, of_filters: int, of_alphas: bool, operator=operator):
                needed = of_images, [of_filters] * 3, of_alphas
                return lambda: operator(grad, images, filters, alphas, "zeros", *needed)  # noqa: B023

            forms = {
                "forward": lambda b=backend: adaptive_fuse(images, filters, alphas, backend=b),  # noqa: B023
                "filters": gradient(False, 1, False),
                "images": gradient(True, 0, False),
                "filters+alphas": gradient(False, 1, True),
                "all": gradient(True, 1, True),
            }
            for form, run in forms.items():
                if dtype is not torch.float32 and form not in ("forward", "filters"):
                    continue

                def measured(run=run, form=form, backend=backend):
                    with torch.no_grad():
                        found = times(run)
                    facts = {"backend": backend, "form": form, "size": size_name, "dtype": dtype_name}  # noqa: B023
                    keep("adaptive_fuse", **facts, **found, floors=found["ms"] / floor)  # noqa: B023

                attempt(f"adaptive_fuse {backend} {form} {size_name} {dtype_name}", measured)


def step_rivals() -> None:
    """Unfold, as it is and compiled, against ours at 1080p; coarse filters against interpolating first."""
    from torch.nn import functional as F

    from benchmarks import formulations
    from ffmef.ops import adaptive_fuse

    backend = BACKENDS[0]
    forms = {
        "unfold": formulations.unfold,
        "compiled unfold": torch.compile(formulations.unfold, backend="eager" if CPU else "inductor"),
        "ours": lambda i, f, a: adaptive_fuse(i, f, a, backend=backend),
    }
    images, filters, alphas, grad = fusion(SIZES["1080p"])
    leaves = [leaf.requires_grad_() for leaf in (*filters, alphas)]
    for name, function in forms.items():
        with torch.no_grad():
            timed("rival", lambda f=function: f(images, filters, alphas), form="forward", name=name)
        both = lambda f=function: torch.autograd.grad(f(images, filters, alphas), leaves, grad)  # noqa: E731
        timed("rival", both, form="forward and backward", name=name)
    coarse = [level.detach()[..., ::SCALE, ::SCALE].contiguous() for level in filters]

    def interpolated() -> list[torch.Tensor]:
        to = images.shape[-2:]
        return [F.interpolate(f.flatten(0, 1), to, mode="bilinear").unflatten(0, f.shape[:2]) for f in coarse]

    with torch.no_grad():
        timed("coarse", lambda: adaptive_fuse(images, coarse, alphas, backend=backend), name="ours")
        timed(
            "coarse", lambda: adaptive_fuse(images, interpolated(), alphas, backend=backend), name="interpolated first"
        )


def step_others() -> None:
    """predict_and_fuse against storing the filters, and pyramid_fuse."""
    from ffmef.ops import adaptive_fuse, predict_and_fuse, pyramid_fuse

    weight, bias = heads()
    for name, size in SIZES.items():
        images, hidden, alphas, grad = fusion(size)
        weights, base = cells(size)

        def stored(images=images, hidden=hidden, alphas=alphas):
            maps = (
                torch.conv2d(h.flatten(0, 1), w[..., None, None], b).unflatten(0, h.shape[:2])
                for h, w, b in zip(hidden, weight, bias, strict=True)
            )
            return adaptive_fuse(images, list(maps), alphas, backend=BACKENDS[0])

        with torch.no_grad():
            timed("predict_and_fuse", stored, backend="filters stored", size=name)
            for b in BACKENDS:
                predict = lambda b=b, h=hidden, i=images, a=alphas: predict_and_fuse(h, weight, bias, i, a, backend=b)  # noqa: E731
                timed("predict_and_fuse", predict, backend=b, size=name)
                arguments = (images, weights, base)
                fuse = lambda b=b, t=arguments: pyramid_fuse(*t, scale=SCALE, backend=b)  # noqa: E731
                timed("pyramid_fuse", fuse, backend=b, form="forward", size=name)
                operator = backward_of("pyramid_fuse", b)
                gradients = lambda o=operator, g=grad, t=arguments: o(g, *t, SCALE, True, True, True)  # noqa: E731
                timed("pyramid_fuse", gradients, backend=b, form="all gradients", size=name)


def networks() -> dict[str, tuple[Callable, tuple[torch.Tensor, ...]]]:
    """Return how to build each network, ours and the rivals, and its inputs at the size of the MEFB pictures."""
    from benchmarks import methods, peers

    size = SIZES["551x707"]
    pair = draw(1, 2, *size)
    every: dict[str, tuple[Callable, tuple[torch.Tensor, ...]]] = {
        "FFMEF": (lambda: methods.model(device=DEVICE), (pair,)),
        "FFMEF (eager)": (lambda: methods.model("eager", device=DEVICE), (pair,)),
        "FFMEF (unfold)": (lambda: methods.model("eager", unfold=True, device=DEVICE), (pair,)),
        "PyramidFFMEF": (lambda: methods.pyramid(DEVICE), (pair,)),
    }
    for name, peer in peers.PEERS.items():
        if CPU and name not in ("MEFLUT", "DeepFuse (paper)"):
            continue  # a rehearsal
        every[name] = (lambda n=name: peers.build(n).to(DEVICE), tuple(draw(2, 1, peer.build.channels, *size)))
    return every


def step_networks(tf32_only: str = "") -> None:
    """Each network on one pair: as called, on the device alone, as a CUDA graph; with TF32 in cuDNN and without."""
    from benchmarks import methods

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # torch's default, set explicitly so that it is certain
    for tf32, (name, (build, inputs)) in itertools.product((True, False), networks().items()):
        if (CPU or tf32_only) and not tf32:
            continue
        torch.backends.cudnn.allow_tf32 = tf32

        def measured(name=name, build=build, inputs=inputs, tf32=tf32):
            with torch.inference_mode():
                network = build()
                keep("network", name=name, tf32=tf32, **times(lambda: network(*inputs), 0.4))
                replay = attempt(f"graph of {name}", lambda: replaying(lambda: network(*inputs)))
                if replay is not None:
                    keep("network as a graph", name=name, tf32=tf32, **times(replay, 0.3))

        attempt(f"network {name}", measured)
        if not CPU:
            torch.cuda.empty_cache()
    torch.backends.cudnn.allow_tf32 = before
    for size_name in ("1080p", "12MP"):
        for name, build in (("FFMEF", methods.model), ("PyramidFFMEF", methods.pyramid)):
            with torch.inference_mode():
                picture, network = draw(1, 2, *SIZES[size_name]), build(device=DEVICE)
                timed("network", lambda n=network, p=picture: n(p), name=name, size=size_name)


def engine_model(kernel_sizes: tuple[int, ...] = KERNEL_SIZES):
    """Return the network with random weights in which no two parameters are alike."""
    from ffmef.models import FFMEF

    torch.manual_seed(3)
    model = FFMEF(4, kernel_sizes).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(DEVICE)


def engine_of(backend: str, model) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the whole network as one operator on a backend."""
    from ffmef.ops import ffmef_forward

    parameters = list(model.parameters())
    return lambda pair: ffmef_forward(pair, parameters, 4, model.kernel_sizes, backend=backend)


def step_engine() -> None:
    """The whole network in one operator: against float64 and repeated; as called, on the device, as a CUDA graph."""
    from ffmef.ops.ffmef_forward import KERNEL_SIZES as SETS

    shapes = [(1, 1, 2), (1, 35, 1), (3, 67, 150), (1, *SIZES["551x707"])]
    with torch.inference_mode():
        for kernel_sizes, shape in [
            *((sizes, shapes[2]) for sizes in SETS),
            *((KERNEL_SIZES, shape) for shape in shapes),
        ]:
            pair, model = draw(shape[0], 2, *shape[1:]), engine_model(kernel_sizes)
            found = {backend: engine_of(backend, model)(pair) for backend in BACKENDS}
            repeated = {b: all(torch.equal(engine_of(b, model)(pair), found[b]) for _ in range(10)) for b in BACKENDS}
            wide = model.cpu().double()
            wide.backend = "eager"
            expected = wide(pair.cpu().double())
            scale = max(1.0, float(expected.abs().max()))
            for backend, fused in found.items():
                error = float((fused.cpu() - expected).abs().max()) / scale
                right = "right" if error < 1e-4 and repeated[backend] else "WRONG"
                print(f"engine {backend} {kernel_sizes} {shape}: {right}, error {error:.2g}", flush=True)
        for size_name in ("551x707", "1080p", "12MP"):
            pair, model = draw(1, 2, *SIZES[size_name]), engine_model()
            found = {}
            for backend in BACKENDS:
                run = engine_of(backend, model)
                found[backend] = run(pair)
                run = lambda r=run, p=pair: r(p)  # noqa: E731
                timed("engine", run, backend=backend, form="operator", size=size_name)
                replay = attempt(f"graph of the engine by {backend}", lambda r=run: replaying(r))
                if replay is not None:
                    timed("engine", replay, backend=backend, form="graph", size=size_name)
            timed("engine", lambda m=model, p=pair: m(p), backend=BACKENDS[0], form="model", size=size_name)
            early, plain = engine_of(BACKENDS[0], model), found[BACKENDS[0]]
            same = attempt("early launches", lambda e=early, p=pair: [torch.equal(e(p), plain) for _ in range(20)])  # noqa: B023
            os.environ["FFMEF_CUDA_EARLY_LAUNCHES"] = "0"  # read at each call
            late = engine_of(BACKENDS[0], model)
            timed("engine", lambda e=late, p=pair: e(p), backend=BACKENDS[0], form="no early launches", size=size_name)
            replay = attempt("graph without early launches", lambda e=late, p=pair: replaying(lambda: e(p)))
            if replay is not None:
                timed("engine", replay, backend=BACKENDS[0], form="graph without early launches", size=size_name)
            kept = attempt("no early launches", lambda e=late, p=pair: torch.equal(e(p), plain))  # noqa: B023
            print(f"engine {size_name}: early launches repeat {same and all(same)}, as without {kept}", flush=True)
            del os.environ["FFMEF_CUDA_EARLY_LAUNCHES"]


SIDE, BATCH = 48 if CPU else 128, 8  # of training; a rehearsal has the same batch, so that the same data are enough


def training_pairs() -> str:
    """Write four pairs of synthetic exposures and return their folder."""
    from PIL import Image

    folder = OUT / f"pairs-{os.getpid()}"  # compilations run beside each other
    for number in range(4):
        (folder / f"{number}").mkdir(parents=True, exist_ok=True)
        frames = bracket((SIDE + 20 + 8 * number, SIDE + 60), 2, True)
        for name, frame in zip("AB", frames, strict=True):
            Image.fromarray(frame).save(folder / f"{number}" / f"{name}.png")
    return str(folder)


def trainer_of(name: str, device: str = DEVICE, **settings):
    """Return a trainer as ``ffmef train`` makes it: the paper's recipe, or the pyramid with its loss on pictures."""
    from ffmef.training.config import Config
    from ffmef.training.trainer import Trainer

    shared = {"data": [training_pairs()], "size": SIDE, "accelerator": device, "seed": 1}
    shared |= {"batch_size": BATCH, "samples_per_epoch": 2 * BATCH}
    if name == "PyramidFFMEF":
        shared |= {"model": "pyramid", "loss": "picture", "clip_norm": 1.0, "ema": 0.99}
    trainer = Trainer(Config(**shared | settings), OUT / "runs" / str(time.perf_counter_ns()))
    trainer.model.train()
    return trainer


def training_batch(overlap: int = 0) -> torch.Tensor:
    side = SIDE + overlap
    return (draw(BATCH, 2, 3, side, side) * torch.tensor([90, 255], device=DEVICE).view(1, 2, 1, 1, 1)).to(torch.uint8)


def timed_steps(name: str, form: str, **settings) -> None:
    """Time whole steps of the trainer, from pictures to weights."""
    batch = training_batch(settings.get("overlap", 0))
    trainer = trainer_of(name, **settings)
    timed("training step", lambda: trainer._step(batch), name=name, form=form, mixed="precision" in settings)
    graphs = len([one for one in trainer._gradients._captured.values() if one])
    finite = all(parameter.isfinite().all() for parameter in trainer.plain.parameters())
    print(f"{name} {form}: {graphs} graphs, {'finite' if finite else 'NOT FINITE'} weights", flush=True)
    torch.backends.cudnn.benchmark = False


def check_training(name: str) -> None:
    """Compare the losses of the first step and its gradients with those on the CPU."""
    torch.backends.cudnn.allow_tf32 = False
    batch, found = training_batch().cpu(), {}
    for device in dict.fromkeys((DEVICE, "cpu")):
        trainer = trainer_of(name, device, initial="mef-pyramid" if name == "PyramidFFMEF" else "mef")
        for _ in range(3):  # the third replays a graph
            _, values = trainer._gradients([trainer._sent(batch)], None)
        gradients = [parameter.grad.flatten().cpu() for parameter in trainer.plain.parameters()]
        found[device] = values.cpu(), torch.cat(gradients)
    (values, gradients), (wanted, wanted_gradients) = found[DEVICE], found["cpu"]
    apart = [float((values - wanted).norm() / wanted.norm())]
    apart.append(float((gradients - wanted_gradients).norm() / wanted_gradients.norm()))
    torch.backends.cudnn.allow_tf32 = True
    right = apart[0] < 1e-3 and apart[1] < 1e-2
    print(f"training {name}: {'right' if right else 'WRONG'}, losses off by {apart[0]:.1e}, gradients {apart[1]:.1e}")


def release_step(mixed: bool, compiled: bool) -> Callable[[], None]:
    """Return a step of the authors' formulation: filters by unfold, a loss of convolutions, AdamW's default."""
    from benchmarks import methods, plain_losses
    from ffmef.losses import Sources

    network = methods.model("eager", unfold=True, device=DEVICE).train().requires_grad_(True)
    called = torch.compile(network, backend="eager" if CPU else "inductor") if compiled else network
    optimizer, batch = torch.optim.AdamW(network.parameters(), lr=1e-3), training_batch()

    def step() -> None:
        sources = Sources.from_rgb(batch)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=mixed):
            fused = called(sources.luminance)
        loss = plain_losses.gif(fused.float(), sources)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def timed_release(mixed: bool, compiled: bool) -> None:
    form = "release, compiled" if compiled else "release"
    timed("training step", release_step(mixed, compiled), name="FFMEF", form=form, mixed=mixed)


def step_training() -> None:
    """Steps as ``ffmef train`` makes them, one by one and as CUDA graphs, against the release's formulation."""
    for name in ("FFMEF", "PyramidFFMEF"):
        attempt(f"check of training {name}", lambda name=name: check_training(name))
    half = {"precision": "bf16-mixed"}
    for name, mixed in itertools.product(("FFMEF", "PyramidFFMEF"), ({}, half)):
        forms = {"single operators": {"graphs": False}, "graph": {}, "graph, tuned cuDNN": {"tune": True}}
        if name == "PyramidFFMEF":
            forms["graph, two cuts"] = {"overlap": 8, "consistency": 1.0}
        for form, settings in forms.items():
            attempt(f"training {name} {form}", lambda n=name, f=form, s=mixed | settings: timed_steps(n, f, **s))
    for mixed in (False, True):
        attempt("training of the release", lambda mixed=mixed: timed_release(mixed, compiled=False))


def compile_training(name: str, mixed: bool) -> None:
    """Take two compiled steps: inductor keeps what it has compiled on the disk."""
    if name == "release":
        step = release_step(mixed, compiled=True)
    else:
        half = {"precision": "bf16-mixed"} if mixed else {}
        trainer, batch = trainer_of(name, compile=True, graphs=False, **half), training_batch()
        step = lambda: trainer._step(batch)  # noqa: E731
    step()
    step()


def step_training_compiled() -> None:
    """The same compiled, with and without a graph; a compilation takes a minute or more, so all go at once."""
    from ffmef.training import trainer

    kinds = [("FFMEF", False), ("FFMEF", True), ("PyramidFFMEF", False), ("release", False), ("release", True)]
    if CPU:
        trainer._COMPILER = "eager"
        for kind in kinds:
            attempt(f"compiling {kind}", lambda kind=kind: compile_training(*kind))
    else:
        with ProcessPoolExecutor(len(kinds), mp_context=multiprocessing.get_context("spawn")) as pool:
            for kind, job in [(kind, pool.submit(compile_training, *kind)) for kind in kinds]:
                attempt(f"compiling {kind}", job.result)
    for name in ("FFMEF", "PyramidFFMEF"):
        for form, settings in {"compiled, graph": {}, "compiled": {"graphs": False}}.items():
            chosen = settings | {"compile": True}
            attempt(f"training {name} {form}", lambda n=name, f=form, s=chosen: timed_steps(n, f, **s))
    half = {"precision": "bf16-mixed", "compile": True}
    attempt("training compiled, mixed", lambda: timed_steps("FFMEF", "compiled, graph", **half))
    for mixed in (False, True):
        attempt("training of the release, compiled", lambda mixed=mixed: timed_release(mixed, compiled=True))


def step_train() -> None:
    """``ffmef train`` to its end: does it end well, does the loss fall, can the weights be used?"""
    shared = ["--data", training_pairs(), "--accelerator", DEVICE, "--size", str(SIDE), "--quiet", "--epochs", "3"]
    shared += ["--batch-size", str(BATCH), "--samples-per-epoch", str(BATCH * (2 if CPU else 40))]
    shared += ["--learning-rate", "2e-3", "--validation", "0.3", "--seed", "3"]
    pyramid = ["--model", "pyramid", "--loss", "picture", "--ema", "0.9", "--clip-norm", "1"]
    made = ["--photographs", "examples", "--on-device", "--largest-count", "4", "--overlap", "8", "--mirror", "3"]
    runs = {"FFMEF": shared, "FFMEF, bfloat16": [*shared, "--precision", "bf16-mixed"], "pyramid": shared + pyramid}
    runs["pyramid, made on the device"] = [*shared[2:], *pyramid, *made, "--consistency", "1", "--validation", "0"]
    if not CPU:
        runs["FFMEF, float16"] = [*shared, "--precision", "16-mixed"]
    for name, options in runs.items():
        attempt(f"ffmef train, {name}", lambda name=name, options=options: train_once(name, options))


def train_once(name: str, options: list[str]) -> None:
    import csv

    from ffmef import models
    from ffmef.cli import main

    folder = OUT / "runs" / name.replace(", ", "-").replace(" ", "-")
    started = time.perf_counter()
    status = main(["train", *options, "-o", str(folder)])
    took = time.perf_counter() - started
    with (folder / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    first, last = float(rows[0]["total"]), float(rows[-1]["total"])
    model = models.load(str(folder / "weights.safetensors")).to(DEVICE).eval()
    with torch.inference_mode():
        finite = bool(model(draw(1, 2, 40, 56)).isfinite().all())
    right = "right" if status in (0, None) and last < first and finite else "WRONG"
    steps = int(rows[-1]["step"])
    learnt = f"loss {first:.4g} -> {last:.4g}, {steps} steps, {took:.1f} s"
    print(f"ffmef train, {name}: {right}, status {status}, {learnt}", flush=True)


def bracket(size: tuple[int, int], count: int, scene: bool, dtype: str = "uint8") -> list:
    """Return exposures of a scene of smooth regions, edges and noise, clipped at both ends; or noise alone."""
    import numpy as np

    random = np.random.default_rng(count)
    noise = random.random((*size, 3), np.float32)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    light = 0.5 + 0.4 * np.sin(x / 37) * np.cos(y / 23) + 0.3 * ((x // 64 + y // 48) % 2)
    shown = np.stack([light, 0.9 * light**1.3, 0.7 * light**0.8], -1) + 0.04 * noise if scene else 2 * noise
    frames = [np.clip(shown * 2.0 ** (2 * n - count + 1), 0, 1) for n in range(count)]
    top = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    return [np.rint(frame * top).astype(dtype) if top > 1 else frame for frame in frames]


def check_exposures(model, name: str, size: tuple[int, int], count: int, scene: bool, dtype: str = "uint8") -> bool:
    """Compare a bracket on the device with the CPU's native path; order and repetition must not change any bit."""
    import numpy as np

    import ffmef
    from ffmef.adjust import Adjustments

    frames = bracket(size, count, scene, dtype)
    changed = name == "adjusted"
    masks = [(np.arange(size[0] * size[1]).reshape(size) * 7 % 256).astype(np.uint8), *[None] * (count - 1)]
    options = {"adjust": Adjustments(0.4, 0.2, -0.3, 1.0), "validity": masks} if changed else {}
    expected = ffmef.fuse(frames, model="pyramid", device="cpu", **options)
    found = [ffmef.fuse(frames, model="pyramid", device=DEVICE, **options) for _ in range(4)]  # later ones use a graph
    if changed:
        options["validity"] = [*masks[1:], masks[0]]
    turned = ffmef.fuse([*frames[1:], frames[0]], model="pyramid", device=DEVICE, **options)
    apart = np.abs(found[0].astype(np.float64) - expected.astype(np.float64))
    same = [all(np.array_equal(found[0], other) for other in found[1:]), np.array_equal(found[0], turned)]
    allowed = {"uint8": 1, "uint16": 12, "float32": 2e-4}[dtype]
    once = ffmef.fuse([frames[0]] * count, model="pyramid", device=DEVICE)
    same.append(
        np.array_equal(once, frames[0]) if dtype != "float32" else bool(np.allclose(once, frames[0], atol=1e-5))
    )
    right = bool(apart.max() <= allowed and all(same))
    facts = {"most": float(apart.max()), "differing": float((apart > 0).mean())}
    print(
        f"exposures {name} {size} x {count} {dtype}: {'right' if right else 'WRONG'}",
        facts,
        "repeats, order, identity",
        same,
    )
    return right


def compare_launches(run, size_name: str, count: int) -> None:
    """Other ways to launch the same kernels, which variables choose: do they give the same, and are they faster?"""
    plain = run()
    for variables in [{"FFMEF_CUDA_EARLY_LAUNCHES": "0"}]:
        os.environ.update(variables)  # read at each call
        form = " ".join(f"{name[11:].lower()}={value}" for name, value in variables.items())
        same = attempt(form, lambda: all(torch.equal(run(), plain) for _ in range(5)))
        print(f"exposures {size_name} {count} {form}: the same:", same, flush=True)
        timed("exposures", run, form=f"as called, {form}", size=size_name, count=count)
        replay = attempt(f"graph of exposures, {form}", lambda: replaying(run))
        if replay is not None:
            timed("exposures", replay, form=f"graph, {form}", size=size_name, count=count)
        for name in variables:
            del os.environ[name]


def step_exposures() -> None:
    """The pyramid from pictures to a picture on the device: does it match the CPU, and how fast is it?"""
    from ffmef import models

    model = models.load("mef-pyramid").to(DEVICE)
    print("why not native:", model.why_not_native())
    sizes = ((37, 51), (1, 2), (8, 16)) if CPU else ((551, 707), (720, 1280), (37, 51), (1, 2), (8, 16), (341, 1026))
    cases = [("plain", size, count, scene) for size in sizes for count in (2, 3, 9) for scene in (True, False)]
    cases += [("adjusted", size, count, True) for size in sizes[:3] for count in (2, 4)]
    cases += [("deep", size, 3, True, dtype) for size in sizes[:3] for dtype in ("uint16", "float32")]
    passed = [attempt(f"exposures {case}", lambda case=case: check_exposures(model, *case)) for case in cases]
    print(f"exposures: {sum(map(bool, passed))} of {len(passed)} right")
    with torch.inference_mode():
        for shape in ((2, 3, 45, 67), (1, 9, 128, 64)):
            given = draw(*shape, seed=5)
            apart = (model(given).cpu() - models.load("mef-pyramid")(given.cpu())).abs().max().item()
            print(f"luminance {shape}: {'right' if apart < 1e-4 else 'WRONG'}, error {apart:.1e}")
        for (size_name, size), count in itertools.product(SIZES.items(), (2, 9)):
            if count == 9 and size_name not in ("551x707", "1080p"):
                continue
            pictures = [torch.from_numpy(frame).to(DEVICE) for frame in bracket(size, count, True)]
            run = lambda p=pictures: model.fuse_rgb(p)  # noqa: E731
            timed("exposures", run, form="as called", size=size_name, count=count)
            replay = attempt("graph of exposures", lambda run=run: replaying(run))
            if replay is not None:
                timed("exposures", replay, form="graph", size=size_name, count=count)
            compare_launches(run, size_name, count)
        if not CPU:
            samples = torch.empty((3000, 4000, 3), dtype=torch.uint8, pin_memory=True)
            there = samples.to(DEVICE)
            timed("copy of 12 MP", lambda: there.copy_(samples, non_blocking=True), way="to the device")
            timed("copy of 12 MP", lambda: samples.copy_(there, non_blocking=True), way="back")


def step_brackets() -> None:
    """Several brackets in one call, and one after another through streams: are they right, and what do they gain?"""
    import ffmef
    from ffmef import checks, models

    print("\n".join(checks.check_pictures(BACKENDS[0], DEVICE)[0]))
    model = models.load("mef-pyramid").to(DEVICE)
    with torch.inference_mode():
        pair = [torch.from_numpy(frame).to(DEVICE) for frame in bracket(SIZES["551x707"], 2, True)]
        four = [torch.stack([frame] * 4) for frame in pair]
        forms = {"together": lambda: model.fuse_rgb(four), "in turn": lambda: [model.fuse_rgb(pair) for _ in range(4)]}
        for form, run in forms.items():
            timed("four pairs", run, form=form, way="as called")
            replay = attempt(f"graph of four pairs {form}", lambda run=run: replaying(run))
            if replay is not None:
                timed("four pairs", replay, form=form, way="graph")
    for size_name in ("551x707", "12MP"):
        pairs = [bracket(SIZES[size_name], 2, True)] * 8
        options = {"model": "pyramid", "device": DEVICE}
        forms = {"fuse_many": lambda: list(ffmef.fuse_many(pairs, **options)),  # noqa: B023
                 "fuse": lambda: [ffmef.fuse(pair, **options) for pair in pairs]}  # noqa: B023  # fmt: skip
        for form, run in forms.items():
            attempt(f"{form} {size_name}", run)
            timed_many = attempt(f"{form} {size_name}", lambda run=run: [measure.seconds(run) for _ in range(3)])
            if timed_many is not None:
                keep("eight pairs", form=form, size=size_name, ms=1e3 * statistics.median(timed_many) / len(pairs))


def step_pictures() -> None:
    """ffmef.fuse from pictures to picture, on the GPU and on this machine's CPU: is it right, and how fast?"""
    from ffmef.checks import pictures as checks

    started = time.perf_counter()
    torch.zeros(1, device=DEVICE).item()
    print(f"the device's context: {1e3 * (time.perf_counter() - started):.0f} ms")
    for size_name, model in itertools.product(("551x707", "12MP"), ("pyramid", "ffmef")):
        pair = bracket(SIZES[size_name], 2, True)
        for device in dict.fromkeys((DEVICE, "cpu")):
            if size_name == "12MP" and device == "cpu" and not CPU:
                continue  # seconds per call
            attempt(f"fuse {model} {device}", lambda: time_fusions(pair, model, device, size_name))  # noqa: B023
    for size_name in ("551x707", "12MP"):  # colour by torch operations instead of the kernels
        pair = bracket(SIZES[size_name], 2, True)
        os.environ["FFMEF_COLOUR_KERNELS"] = "0"
        what = "uint8, no colour kernels"
        attempt(f"fuse ffmef {what}", lambda: time_fusions(pair, "ffmef", DEVICE, size_name, what))  # noqa: B023
        del os.environ["FFMEF_COLOUR_KERNELS"]
    for model, dtype in itertools.product(("pyramid", "ffmef"), ("uint16", "float32", "grey")):
        pair = bracket(SIZES["551x707"], 2, True, "uint8" if dtype == "grey" else dtype)
        pair = [frame[..., 1].copy() for frame in pair] if dtype == "grey" else pair
        attempt(f"fuse {model} {dtype}", lambda: time_fusions(pair, model, DEVICE, "551x707", dtype))  # noqa: B023
    right = 0
    for fusion in checks.fusions():
        error = attempt(str(fusion), lambda: checks.fusion_error(fusion, DEVICE))  # noqa: B023
        right += error is not None and error <= 1
        if error is None or not error <= 1:
            print(f"{fusion}: WRONG, {error} times what is allowed")
    print(f"fusions of pictures like those of the CPU: {right} of {len(checks.fusions())} right", flush=True)


def time_fusions(pair: list, model: str, device: str, size_name: str, dtype: str = "uint8") -> None:
    """Keep the times of the first calls of ffmef.fuse, and the median of later ones."""
    import ffmef

    ms = [1e3 * measure.seconds(lambda: ffmef.fuse(pair, model=model, device=device)) for _ in range(9)]
    facts = {"model": model, "device": device, "size": size_name, "dtype": dtype}
    keep("fuse", **facts, ms=statistics.median(ms[3:]), first_ms=ms[0], second_ms=ms[1], third_ms=ms[2])


def step_profiled() -> None:
    """One call to each kernel that matters, for ncu."""
    from ffmef.ops import adaptive_fuse, predict_and_fuse, pyramid_fuse

    backend = BACKENDS[0]
    images, filters, alphas, grad = fusion(SIZES["1080p"])
    weight, bias = heads()
    with torch.no_grad():
        adaptive_fuse(images, filters, alphas, backend=backend)
        backward_of("adaptive_fuse", backend)(grad, images, filters, alphas, "zeros", True, [1, 1, 1], False)
        predict_and_fuse(filters, weight, bias, images, alphas, backend=backend)
        pyramid_fuse(images, *cells(SIZES["1080p"]), scale=SCALE, backend=backend)
        engine_of(backend, engine_model())(draw(1, 2, *SIZES["551x707"]))
    if not CPU:
        torch.cuda.synchronize()


def step_launches() -> None:
    """The networks' kernels by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    from benchmarks import methods

    pair, exposures = draw(1, 2, *SIZES["551x707"]), methods.pyramid(DEVICE)
    runs: dict[str, Callable] = {"FFMEF": lambda n=methods.model(device=DEVICE): n(pair)}
    runs["PyramidFFMEF"] = lambda: exposures(pair)
    for name in ("551x707", "12MP"):
        pictures = [torch.from_numpy(frame).to(DEVICE) for frame in bracket(SIZES[name], 2, True)]
        runs[f"PyramidFFMEF, RGB, {name}"] = lambda p=pictures: exposures.fuse_rgb(p)
    for name, run in runs.items():
        with torch.inference_mode():
            run()
            with profile(activities=[ProfilerActivity.CPU if CPU else ProfilerActivity.CUDA]) as record:
                run()
                if not CPU:
                    torch.cuda.synchronize()
        order = "cpu_time_total" if CPU else "cuda_time_total"
        print(name)
        print(record.key_averages().table(sort_by=order, row_limit=18, max_name_column_width=72), flush=True)


# ---- helpers of the shell script ----


def step_warm() -> None:
    """Compile now, alongside other work, what is timed later: Triton's kernels and inductor's unfold."""
    jobs = (step_profiled_by_triton, step_rivals_once)
    with ProcessPoolExecutor(len(jobs)) as pool:
        for job, future in [(job, pool.submit(job)) for job in jobs]:
            print("warm", job.__name__, attempt(job.__name__, future.result), flush=True)


def step_profiled_by_triton() -> str:
    global BACKENDS

    BACKENDS = ("triton",)
    step_profiled()
    return "done"


def step_rivals_once() -> str:
    from benchmarks import formulations

    images, filters, alphas, grad = fusion(SIZES["1080p"])
    compiled = torch.compile(formulations.unfold)
    with torch.no_grad():
        compiled(images, filters, alphas)
    leaves = [leaf.requires_grad_() for leaf in (*filters, alphas)]
    torch.autograd.grad(compiled(images, filters, alphas), leaves, grad)
    return "done"


def step_table() -> None:
    """All numbers in a few lines."""
    path = OUT / "results.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for what, group in itertools.groupby(sorted(records, key=lambda r: r["what"]), lambda r: r["what"]):
        print(f"[{what}]")
        for record in group:
            names = [str(v) for k, v in record.items() if k != "what" and not isinstance(v, float)]
            numbers = [f"{k} {v:.4g}" for k, v in record.items() if isinstance(v, float)]
            print("  " + " ".join(names) + ": " + ", ".join(numbers))


if __name__ == "__main__":
    known = [name.removeprefix("step_") for name in globals() if name.startswith("step_")]
    named = sys.argv[1].split(",") if len(sys.argv) > 1 else []
    if not named or not set(named) <= set(known):
        print(f"usage: gpu_first_run.py STEP[,STEP...] [ARGUMENTS], steps: {', '.join(known)}", file=sys.stderr)
        sys.exit(2)
    OUT.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in named:
        step = globals()[f"step_{name}"]
        if not attempt(name, lambda step=step: (step(*sys.argv[2:]), True)):
            failed.append(name)
    sys.exit(1 if failed else 0)
