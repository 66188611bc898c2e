"""The problems of the tests and of bench/: shapes, grids, degrees and inputs.

The symbols for sizes are N (rows), I (in_features), O (out_features), G (grid_size), K (spline_order) and M = G + K (bases).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """One problem. `make` draws its tensors."""

    N: int
    I: int  # noqa: E741
    O: int  # noqa: E741
    G: int = 5
    K: int = 3
    knots: str = "uniform"  # or "adaptive": a different random grid for every feature; "clamped": repeated end knots
    points: str = "mixed"  # or "inside": in the grid range; "equal": N equal rows; see make_points
    layout: str = "contiguous"  # or "strided": views with gaps; "expanded": x and g have stride 0; "in_first": see make
    base: str | None = "silu"
    weighted: bool = False  # a weight w per input value
    scaled: bool = False  # a spline_scaler per edge

    def __str__(self) -> str:
        parts = [f"N{self.N}-I{self.I}-O{self.O}-G{self.G}-K{self.K}"]
        defaults = {"knots": "uniform", "points": "mixed", "layout": "contiguous", "base": "silu"}
        parts += [str(getattr(self, name)) for name, usual in defaults.items() if getattr(self, name) != usual]
        parts += [name for name in ("weighted", "scaled") if getattr(self, name)]
        return "-".join(parts)

    @property
    def M(self) -> int:
        return self.G + self.K


@dataclass
class Tensors:
    """The operators' arguments for a case, in one dtype."""

    x: Tensor  # (N, I)
    w: Tensor | None  # (N, I)
    spline_weight: Tensor  # (O, I, M)
    spline_scaler: Tensor | None  # (O, I)
    grid: Tensor  # (I, G+2K+1)
    base_weight: Tensor | None  # (O, I)
    g: Tensor  # (N, O)

    def to(self, dtype: torch.dtype) -> "Tensors":
        return Tensors(**{k: None if t is None else t.to(dtype) for k, t in vars(self).items()})

    def on(self, device: str) -> "Tensors":
        return Tensors(**{k: None if t is None else t.to(device) for k, t in vars(self).items()})


def make_grid(case: Case, generator: torch.Generator) -> Tensor:
    """Return the knots (I, G+2K+1) in float64. The grid range is [-1, 1]."""
    step = 2 / case.G
    knots = torch.arange(-case.K, case.G + case.K + 1, dtype=torch.float64) * step - 1
    grid = knots.repeat(case.I, 1)
    if case.knots == "adaptive":
        grid += (torch.rand(grid.shape, generator=generator, dtype=torch.float64) - 0.5) * 0.9 * step
    if case.knots == "clamped":
        grid = grid.clamp(-1, 1)
    return grid


def make_points(case: Case, grid: Tensor, generator: torch.Generator) -> Tensor:
    """Return the inputs (N, I).

    With points "mixed", about a third of the inputs is in the grid range, a third is anywhere up to 0.5 beyond the outermost
    knots, and a third is on knots.
    """
    inside = torch.rand(case.N, case.I, generator=generator, dtype=torch.float64) * 2 - 1
    if case.points == "inside":
        return inside
    if case.points == "equal":
        return inside[:1].repeat(case.N, 1)
    low, high = grid.min() - 0.5, grid.max() + 0.5
    anywhere = torch.rand(case.N, case.I, generator=generator, dtype=torch.float64) * (high - low) + low
    which = torch.randint(0, grid.shape[1], (case.N, case.I), generator=generator)
    on_knots = grid.gather(1, which.t()).t()
    kind = torch.randint(0, 3, (case.N, case.I), generator=generator)
    return torch.where(kind == 0, inside, torch.where(kind == 1, anywhere, on_knots))


def make(case: Case, dtype: torch.dtype, seed: int = 0) -> Tensors:
    """Return the case's tensors. They are drawn in float64 and rounded, so that the problem is the same in every dtype.

    With the layout "in_first", the weights are transposed views of contiguous (I, O, M) and (I, O) tensors, as in pykan.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # The knots are rounded before the points are drawn, so that points on knots stay on them.
    grid = make_grid(case, generator).to(dtype)
    x = make_points(case, grid.double(), generator)
    tensors = Tensors(
        x=x.to(dtype),
        w=normal(case.N, case.I).to(dtype) if case.weighted else None,
        spline_weight=normal(case.I, case.M, case.O).permute(2, 0, 1).contiguous().to(dtype),
        spline_scaler=normal(case.I, case.O).t().contiguous().to(dtype) if case.scaled else None,
        grid=grid,
        base_weight=normal(case.I, case.O).t().contiguous().to(dtype) if case.base else None,
        g=normal(case.N, case.O).to(dtype),
    )
    if case.layout == "strided":
        return Tensors(**{name: None if t is None else with_gaps(t) for name, t in vars(tensors).items()})
    if case.layout == "expanded":
        tensors.g = tensors.g[:1, :1].expand(case.N, case.O) if case.N else tensors.g
        tensors.x = tensors.x[:, :1].expand(case.N, case.I)
    if case.layout == "in_first":
        for name in ("spline_weight", "spline_scaler", "base_weight"):
            t = getattr(tensors, name)
            setattr(tensors, name, None if t is None else t.transpose(0, 1).contiguous().transpose(0, 1))
    return tensors


def with_gaps(t: Tensor) -> Tensor:
    """Return the same values as a transposed view with gaps. The gaps contain NaN."""
    room = t.new_full([2 * size + 1 for size in reversed(t.shape)], float("nan"))
    view = room[tuple(slice(1, None, 2) for _ in t.shape)].permute(*reversed(range(t.dim())))
    view.copy_(t)
    return view


# The sizes are close to every vector length and block size. The cases cover all grids, degrees and layouts.
COMMON_CASES = [
    Case(1, 1, 1),
    Case(1, 1, 1, K=1, knots="adaptive", weighted=True, scaled=True),
    Case(0, 3, 2),
    Case(1, 7, 129),
    Case(1, 7, 128, G=20, scaled=True),
    Case(3, 2, 64, scaled=True, weighted=True),
    Case(2, 63, 31, knots="adaptive", weighted=True, scaled=True),
    Case(1, 129, 64, G=20, layout="strided", scaled=True),
    Case(4, 17, 5, G=4, K=0, knots="adaptive", scaled=True),
    Case(3, 7, 16, G=3, K=6, scaled=True),
    Case(7, 1, 63, knots="adaptive"),
    Case(7, 63, 1, G=1),
    Case(63, 7, 7, G=1, K=1, weighted=True),
    Case(63, 7, 17, K=2, knots="adaptive", scaled=True),
    Case(129, 7, 63, layout="strided", weighted=True, scaled=True),
    Case(129, 7, 64, layout="expanded"),
    Case(129, 7, 96, points="inside"),
    Case(300, 3, 16, knots="adaptive", G=20, weighted=True, scaled=True),
    Case(129, 5, 33, G=20, K=1, knots="adaptive"),
    Case(300, 33, 2, G=20, layout="strided", scaled=True),
    Case(1030, 3, 12, G=12, K=2, knots="adaptive", weighted=True),
    Case(129, 5, 31, G=20, K=2, weighted=True),
    Case(129, 5, 15, G=20, K=4, knots="adaptive", weighted=True),
    Case(129, 5, 9, G=7, K=5, knots="adaptive", scaled=True),
    Case(65, 3, 65, G=3, K=5, weighted=True),
    Case(65, 3, 20, G=4, K=0, knots="adaptive", weighted=True, scaled=True),
    Case(65, 3, 5, G=4, K=7, scaled=True),
    Case(65, 2, 5, G=6, K=6, knots="adaptive", weighted=True),
    Case(129, 3, 5, knots="clamped"),
    Case(63, 7, 5, G=100),
    Case(63, 7, 5, G=100, knots="adaptive", weighted=True),
    Case(500, 20, 20, G=100, K=5, points="inside"),
    Case(2100, 2, 8, G=40, knots="adaptive"),
    Case(2100, 2, 17, G=40, K=1, knots="adaptive"),
    Case(700, 2, 16, G=40, K=2, weighted=True, scaled=True),
    Case(2100, 1, 33, G=60, K=5, knots="adaptive", weighted=True),
    Case(2100, 2, 17, G=40, points="equal"),
    Case(4200, 1, 7, weighted=True),
    Case(63, 7, 17, base="identity", weighted=True),
    Case(63, 7, 17, base=None, weighted=True, scaled=True),
]

# The C++ kernels take different code paths in these cases.
CPU_CASES = [
    # Few rows: the sizes are below, at and above every vector length.
    Case(1, 1, 7, G=1, K=4, weighted=True),
    Case(1, 64, 64, layout="strided", weighted=True, scaled=True),
    Case(2, 129, 7, knots="adaptive", scaled=True),
    Case(2, 7, 129, G=1, K=4, layout="strided", scaled=True),
    Case(3, 33, 129, weighted=True, scaled=True),
    Case(3, 129, 7, G=1, K=4, knots="adaptive", weighted=True, scaled=True),
    Case(4, 33, 64, G=1, K=4, scaled=True),
    Case(5, 64, 7, G=1, K=4, layout="strided", weighted=True, scaled=True),
    Case(5, 33, 129, knots="adaptive", weighted=True),
    # High degrees.
    Case(1, 5, 32, K=7, scaled=True),
    Case(1, 5, 31, K=7, knots="adaptive"),
    Case(4, 5, 17, K=6, knots="adaptive", scaled=True),
    Case(4, 5, 16, K=7, knots="adaptive", weighted=True, scaled=True),
    Case(63, 3, 33, K=6, weighted=True, scaled=True),
    Case(63, 3, 17, K=7, G=8, knots="adaptive", weighted=True, scaled=True),
    Case(300, 3, 16, K=6),
    Case(300, 3, 16, K=7, knots="adaptive"),
    # These degrees have no specialized loops.
    Case(300, 3, 17, K=8, scaled=True),
    Case(63, 3, 33, K=9, knots="adaptive", weighted=True, scaled=True),
    Case(3, 17, 5, K=9, scaled=True),
]

# The weights have pykan's memory layout.
PYKAN_CASES = [
    Case(1, 7, 33, layout="in_first", scaled=True),
    Case(4, 33, 64, layout="in_first"),
    Case(63, 7, 17, layout="in_first", K=2, knots="adaptive", weighted=True, scaled=True),
    Case(129, 16, 48, layout="in_first", scaled=True),
    Case(65, 3, 20, layout="in_first", G=4, K=6, weighted=True, scaled=True),
]

CASES = COMMON_CASES + CPU_CASES + PYKAN_CASES

# The shapes of the performance tables.
BENCH_CASES = {
    "square-64": Case(4096, 64, 64, points="inside"),
    "square-64-small-batch": Case(1024, 64, 64, points="inside"),
    "square-256": Case(4096, 256, 256, points="inside"),
    "wide-input": Case(256, 784, 64, points="inside"),
    "wide-output": Case(256, 64, 784, points="inside"),
    "one-input": Case(4096, 1, 256, points="inside"),
    "one-output": Case(4096, 256, 1, points="inside"),
    "odd-output": Case(4096, 64, 63, points="inside"),
    "ten-outputs": Case(4096, 64, 10, points="inside"),
    "grid-20": Case(4096, 64, 64, G=20, points="inside"),
    "grid-100": Case(2048, 64, 64, G=100, points="inside"),
    "adaptive": Case(4096, 64, 64, knots="adaptive", points="inside"),
    "adaptive-100": Case(2048, 64, 64, G=100, knots="adaptive", points="inside"),
    "tiny": Case(64, 2, 5, points="inside"),
}

# The shapes of the GPU performance tables.
GPU_BENCH_CASES = {
    "64": Case(65536, 64, 64, points="inside"),
    "256": Case(65536, 256, 256, points="inside"),
    "1024": Case(16384, 1024, 1024, points="inside"),
    "4096": Case(4096, 4096, 4096, points="inside"),
    "256, fine": Case(65536, 256, 256, G=20, points="inside"),
    "narrow": Case(1_000_000, 8, 32, points="inside"),
    "small batch": Case(256, 784, 64, points="inside"),
    "small": Case(1024, 64, 64, points="inside"),
}
