"""Problems that every backend of an operator must solve: shapes, dtypes, paddings, kernel paths and layouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ffmef.checks.tolerances import TOLERANCE

if TYPE_CHECKING:
    import torch

    from ffmef.ops.types import Backend, PaddingMode

FILTER_SIZES = (1, 3, 5)  # of the paper, used for timings


@dataclass(frozen=True)
class Problem:
    """One row of an operator's matrix: pictures of a size, dtype and layout, and in subclasses the operator's own."""

    dtype: str
    batch: int
    images: int
    channels: int
    height: int
    width: int
    layout: str = field(default="contiguous", kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the images."""
        return self.batch, self.images, self.channels, self.height, self.width

    def __str__(self) -> str:
        return f"{self.dtype} {'x'.join(map(str, self.shape))} {self.own()} {self.layout}"

    def own(self) -> str:
        """Return the operator's parameters in words."""
        raise NotImplementedError

    def tensors(self, normal: Callable[..., torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the operator's tensors, and a gradient of the output."""
        images = lay_out(normal(*self.shape), self.layout)
        return [images, *self.others(normal)], normal(self.batch, *self.shape[2:])

    def others(self, normal: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        """Return the operator's tensors that follow the images."""
        raise NotImplementedError

    def run(self, leaves: list[torch.Tensor], backend: Backend) -> torch.Tensor:
        """Return the operator's result."""
        raise NotImplementedError

    def define(self, leaves: list[torch.Tensor], magnitudes: bool) -> torch.Tensor:
        """Return the result by definition, in plain torch; with ``magnitudes``, no term is subtracted."""
        raise NotImplementedError


@dataclass(frozen=True)
class FilterProblem(Problem):
    """One row of adaptive_fuse's matrix; the filters may lie on a coarser grid."""

    padding: PaddingMode
    sizes: tuple[int, ...]
    grid: tuple[int, int] | None = field(default=None, kw_only=True)

    def own(self) -> str:
        on_grid = "" if self.grid is None else f" on {self.grid[0]}x{self.grid[1]} cells"
        return f"{self.padding} k={','.join(map(str, self.sizes))}{on_grid}"

    def others(self, normal: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        grid = self.grid or (self.height, self.width)
        shapes = [(self.batch, self.images, k * k, *grid) for k in self.sizes]
        filters = [lay_out(normal(*shape), self.layout) for shape in shapes]
        # Alphas are float32 beside half precision, and otherwise of the images' dtype.
        alphas = normal(len(self.sizes))
        return [*filters, alphas if self.dtype == "float64" else alphas.float()]

    def run(self, leaves: list[torch.Tensor], backend: Backend) -> torch.Tensor:
        from ffmef import ops

        return ops.adaptive_fuse(leaves[0], leaves[1:-1], leaves[-1], padding_mode=self.padding, backend=backend)

    def define(self, leaves: list[torch.Tensor], magnitudes: bool) -> torch.Tensor:
        from ffmef.ops import reference

        return reference.adaptive_fuse(leaves[0], leaves[1:-1], leaves[-1], self.padding)


@dataclass(frozen=True)
class PyramidProblem(Problem):
    """One row of pyramid_fuse's matrix."""

    bands: int
    scale: int

    def own(self) -> str:
        return f"bands={self.bands} scale={self.scale}"

    def others(self, normal: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        cells = (-(-self.height // self.scale), -(-self.width // self.scale))
        weights = lay_out(normal(self.batch, self.bands, self.images, *cells), self.layout)
        return [weights, lay_out(normal(self.batch, self.images, *cells), self.layout)]

    def run(self, leaves: list[torch.Tensor], backend: Backend) -> torch.Tensor:
        from ffmef import ops

        return ops.pyramid_fuse(*leaves, scale=self.scale, backend=backend)

    def define(self, leaves: list[torch.Tensor], magnitudes: bool) -> torch.Tensor:
        images, weights, base = leaves
        return pyramid_terms(images, weights, base, self.scale, 1 if magnitudes else -1)


def pyramid_terms(
    images: torch.Tensor, weights: torch.Tensor, base: torch.Tensor, scale: int, sign: int
) -> torch.Tensor:
    """Return pyramid_fuse by its definition; with sign 1, bands add where they subtract, for magnitudes."""
    from ffmef.ops.reference import expand, halve

    bands = weights.shape[1]
    levels = [images]
    for _ in range(bands):
        levels.append(halve(levels[-1]))
    out = (expand(base, scale >> bands, *levels[-1].shape[-2:]).unsqueeze(2) * levels[-1]).sum(1)
    for level in reversed(range(bands)):
        size = levels[level].shape[-2:]
        band = levels[level] + sign * expand(levels[level + 1], 2, *size)
        fine = expand(weights[:, level], scale >> level, *size).unsqueeze(2)
        out = expand(out, 2, *size) + (fine * band).sum(1)
    return out


def matrix(quick: bool) -> list[Problem]:
    """Return the problems: every dtype, padding, path of the kernels and memory layout."""
    problems: list[Problem] = []
    paddings: tuple[PaddingMode, ...] = ("zeros", "replicate", "reflect")
    for dtype in TOLERANCE:
        for padding in paddings:
            problems += [
                FilterProblem(dtype, 2, 2, 1, 37, 144, padding, (1, 3, 5)),
                FilterProblem(dtype, 1, 2, 1, 19, 67, padding, (1, 3, 5)),
                FilterProblem(dtype, 1, 3, 3, 18, 72, padding, (3, 7)),
                FilterProblem(dtype, 1, 2, 6, 9, 21, padding, (1, 5)),
                FilterProblem(dtype, 1, 2, 1, 2, 3, padding, (5, 7, 1)),
                FilterProblem(dtype, 1, 1, 2, 12, 40, padding, (9, 3)),
                FilterProblem(dtype, 1, 2, 1, 1, 1, padding, (3,)),
            ]
        problems += [
            FilterProblem(dtype, 2, 2, 3, 11, 32, "zeros", (1, 3), layout="slice"),
            FilterProblem(dtype, 1, 2, 3, 11, 32, "reflect", (3,), layout="transposed"),
            FilterProblem(dtype, 3, 2, 1, 9, 32, "zeros", (1, 5), layout="expanded"),
            FilterProblem(dtype, 1, 2, 1, 5, 24, "zeros", (1, 3) * 8 + (5,)),
            FilterProblem(dtype, 2, 2, 1, 37, 144, "circular", (1, 3, 5)),
            FilterProblem(dtype, 2, 2, 1, 37, 144, "zeros", (1, 3, 5), grid=(5, 18)),
            FilterProblem(dtype, 1, 3, 3, 18, 67, "circular", (3,), grid=(7, 20)),
            FilterProblem(dtype, 1, 2, 2, 9, 23, "replicate", (5, 1), grid=(9, 8), layout="slice"),
        ]
    problems.append(FilterProblem("float32", 1, 1, 1, 12, 16, "replicate", (31,)))
    for dtype in TOLERANCE:
        problems += [
            PyramidProblem(dtype, 2, 2, 1, 77, 144, 3, 8),
            PyramidProblem(dtype, 1, 3, 2, 37, 67, 3, 16),
            PyramidProblem(dtype, 1, 2, 1, 35, 39, 2, 4, layout="slice"),
            PyramidProblem(dtype, 2, 2, 3, 9, 24, 1, 2, layout="expanded"),
            PyramidProblem(dtype, 1, 2, 1, 5, 7, 1, 2, layout="transposed"),
            PyramidProblem(dtype, 1, 2, 1, 70, 45, 5, 32),
            PyramidProblem(dtype, 1, 1, 1, 9, 33, 0, 1),
            PyramidProblem(dtype, 1, 2, 1, 1, 1, 3, 8),
        ]
    # From 256 tiles on, three bands have tiles of 64 x 64 pixels on a GPU.
    problems += [PyramidProblem(dtype, 8, 1, 8, 65, 68, 3, 8) for dtype in ("float32", "float16")]
    problems.append(PyramidProblem("float32", 8, 2, 8, 67, 66, 2, 8))
    return problems[2::12] if quick else problems


def interpretable(problems: list[Problem]) -> list[Problem]:
    """Return some small problems: in Triton's interpreter every tap of a tile takes tens of milliseconds."""
    small = [p for p in problems if isinstance(p, FilterProblem) and p.height * p.width <= 400]
    small = [p for p in small if sum(k * k for k in p.sizes) <= 35 and (p.padding == "zeros" or max(p.sizes) <= 3)]
    tiny = [p for p in problems if isinstance(p, PyramidProblem) and p.height * p.width <= 40]
    return [*small[::3], *tiny]


def predictions(interpreted: bool) -> list[FilterProblem]:
    """Return the problems of predict_and_fuse: every dtype, with and without vector loads, maps in groups."""
    problems = []
    for dtype in TOLERANCE:
        problems += [
            FilterProblem(dtype, 2, 2, 1, 37, 144, "zeros", (1, 3, 5)),
            FilterProblem(dtype, 1, 3, 3, 19, 67, "reflect", (3, 7)),
            FilterProblem(dtype, 1, 2, 1, 4, 9, "replicate", (9, 1)),
            FilterProblem(dtype, 1, 2, 1, 5, 9, "zeros", (3,)),
        ]
    return problems[3::4] if interpreted else problems


def lay_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """Return equal values in another memory layout, with NaN in the gaps."""
    sizes = tuple(tensor.shape)
    if layout == "transposed":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "channels last":
        return tensor.movedim(2, -1).contiguous().movedim(-1, 2)
    if layout == "expanded":  # all share the data of one picture
        return tensor[:1].expand_as(tensor)
    if layout == "slice":  # a view of a larger tensor, off a 16-byte boundary
        view = tensor.new_full([n + 3 for n in sizes], float("nan"))[tuple(slice(1, n + 1) for n in sizes)]
    elif layout == "offset":  # dense, off a 16-byte boundary
        view = tensor.new_full((tensor.numel() + 1,), float("nan"))[1:].view(sizes)
    elif layout == "aligned slice":  # strided, yet fit for 16-byte loads
        view = tensor.new_full([*sizes[:-1], sizes[-1] + 16], float("nan"))[..., : sizes[-1]]
    elif layout == "every second":
        view = tensor.new_full([*sizes[:-1], 2 * sizes[-1]], float("nan"))[..., ::2]
    else:
        return tensor
    return view.copy_(tensor)


def inputs(problem: Problem, device: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the operator's tensors and a gradient of its output; the same values on every call and device."""
    import torch

    random = torch.Generator().manual_seed(7)
    dtype = getattr(torch, problem.dtype)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).to(device)

    return problem.tensors(normal)


def bytes_moved(height: int, width: int, element: int) -> int:
    """Return the least traffic for two one-channel images: the filters, or their gradient, two images and one more."""
    taps = 2 * sum(k * k for k in FILTER_SIZES)
    return height * width * element * (taps + 3)
