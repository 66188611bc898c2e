"""How well c f(a x + b) + d fits samples, for every cell of a grid (a, b): the measure of pykan's search for formulas."""

from collections.abc import Callable

import torch
from torch import Tensor

# The functions that have kernels, by the names in pykan's library
FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "x": lambda z: z,
    "x^2": lambda z: z**2,
    "x^3": lambda z: z**3,
    "x^4": lambda z: z**4,
    "x^5": lambda z: z**5,
    "1/x": lambda z: 1 / z,
    "1/x^2": lambda z: 1 / z**2,
    "1/x^3": lambda z: 1 / z**3,
    "1/x^4": lambda z: 1 / z**4,
    "1/x^5": lambda z: 1 / z**5,
    "sqrt": torch.sqrt,
    "x^1.5": lambda z: torch.sqrt(z) ** 3,
    "1/sqrt(x)": lambda z: 1 / torch.sqrt(z),
    "exp": torch.exp,
    "log": torch.log,
    "abs": torch.abs,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "sgn": torch.sign,
    "arcsin": torch.arcsin,
    "arccos": torch.arccos,
    "arctan": torch.arctan,
    "arctanh": torch.arctanh,
    "gaussian": lambda z: torch.exp(-(z**2)),
}
RIDGE = 1e-4  # what pykan adds to the denominator
_BLOCK = 1 << 17  # values of f at once: 1 MB of float64
_SAMPLES = 1 << 12  # of a block, at most


def affine_cells(x: Tensor, target: Tensor, function: str, a: Tensor, b: Tensor) -> Tensor:
    """Return r2 (A, B), float64, for x and target (N,), a (A,) and b (B,), and a function of `FORMULAS`. target has mean 0."""
    return cells_of(FORMULAS[function], x, target, a, b)


def cells_of(fun: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return r2 (A, B) for any elementwise function, in blocks of cells and samples that stay in the caches.

    A cell's values are centred by the mean of its first samples, so that the digits of 1 - r2 survive.
    """
    cells = max(1, _BLOCK // min(len(x), _SAMPLES))
    columns_a = a.repeat_interleave(len(b)).unsqueeze(1).split(cells)
    columns_b = b.repeat(len(a)).unsqueeze(1).split(cells)
    square_of_target = target.square().sum()
    parts = []
    for of_a, of_b in zip(columns_a, columns_b, strict=True):
        shift = total = square = along = x.new_zeros((), dtype=torch.float64)
        for first, (samples, of_samples) in enumerate(zip(x.split(_SAMPLES), target.split(_SAMPLES), strict=True)):
            values = fun(of_a * samples + of_b).double()
            if first == 0:
                shift = values.mean(1, keepdim=True)
            values = values - shift
            total = total + values.sum(1)
            along = along + values @ of_samples
            square = square + values.square().sum(1)
        parts.append(along.square() / ((square - total.square() / len(x)) * square_of_target + RIDGE))
    return torch.cat(parts).view(len(a), len(b)) if parts else x.new_zeros(len(a), len(b))
