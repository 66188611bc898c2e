"""`suggest`: the functions that fit a curve, simple and accurate ones first."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..utils.checks import check_floating, check_has_values, check_number, shape_of
from .affine_fit import affine_fit
from .library import ZERO, Function, chosen_functions, is_in_library, normalized
from .polish import polish

Lib = Iterable[str | Function] | None


class Candidate(NamedTuple):
    """A function that fits a curve as y = c f(a x + b) + d.

    Attributes:
        function: f.
        r2: the coefficient of determination on the samples, at most 1.
        a, b, c, d: the parameters.
        loss: what `suggest` sorts by, see there.
    """

    function: Function
    r2: float
    a: float
    b: float
    c: float
    d: float
    loss: float

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.function.name

    @property
    def complexity(self) -> float:
        """The complexity of the function."""
        return self.function.complexity

    def __call__(self, x: Tensor) -> Tensor:
        """Return c f(a x + b) + d with the shape of x."""
        return self.c * self.function.function(self.a * x + self.b) + self.d

    def __repr__(self) -> str:
        numbers = ", ".join(f"{letter}={getattr(self, letter):.6g}" for letter in "abcd")
        return f"Candidate({self.name!r}, r2={self.r2:.9f}, complexity={self.complexity}, {numbers})"


class Search(NamedTuple):
    """The checked arguments of a search that all curves share."""

    functions: list[Function]
    a_range: tuple[float, float]
    b_range: tuple[float, float]
    weight_simple: float


def suggest(
    x: Tensor,
    y: Tensor,
    lib: Lib = None,
    *,
    a_range: Sequence[float] = (-10, 10),
    b_range: Sequence[float] = (-10, 10),
    weight_simple: float = 0.8,
) -> list[Candidate]:
    """Return the functions of a library, fitted to samples of a curve, in the order of pykan's `suggest_symbolic`.

    The fit y = c f(a x + b) + d is pykan's search: a grid of 101 x 101 pairs (a, b) that is refined twice, with the least
    squares c and d. The order is by weight_simple * complexity + (1 - weight_simple) * log2(1 + 1e-5 - r2) of the search.
    The search is for x of order 1, since a_range and b_range limit it; y can have any size.

    Then Gauss-Newton steps refine all four parameters, so that a, b and r2 are better than those of the grid and can leave its
    ranges. Where functions have a redundant parameter, a is 1 or -1 (powers, "log"), or b is 0 ("exp"). Neighbours that fit
    equally well, as "sin" and "cos", are in the order of the library.

    Args:
        x, y: (N,), N >= 2, finite, floating point, on one device. The computation is in float64.
        lib: names of the library (`LIBRARY`, pykan's names) and `Function` objects; None for the whole library.
        a_range, b_range: (low, high) of the search.
        weight_simple: in [0, 1]; 0 sorts by r2 alone, 1 by complexity alone.

    Raises:
        TypeError, ValueError: an argument is invalid (the message names it), or x or y is constant.

    Equivalent to, for one function f and given a and b:
        values = torch.stack([f(a * x + b), torch.ones_like(x)], 1)
        c, d = torch.linalg.lstsq(values, y).solution
        r2 = 1 - (y - values @ torch.stack([c, d])).square().sum() / (y - y.mean()).square().sum()
    """
    search = checked_search(lib, a_range, b_range, weight_simple)
    for name, value in (("x", x), ("y", y)):
        check_floating(name, value)
        check_has_values(name, value)
    if x.dim() != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(f"x and y: expected two tensors (N,), N >= 2, got shapes {shape_of(x)} and {shape_of(y)}")
    if y.device != x.device:
        raise ValueError(f"y: expected {x.device}, the device of x, got {y.device}")
    for name, value in (("x", x), ("y", y)):
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name}: expected finite values, got a NaN or an infinity")
        if bool((value == value[0]).all()):
            raise ValueError(f"{name}: expected values that differ, got {value[0].item():g} in all samples")
    return candidates(x, y, search)


def checked_search(lib: Any, a_range: Any, b_range: Any, weight_simple: Any) -> Search:
    """Check the arguments that `suggest` and `KAN.symbolic` share."""
    check_number("weight_simple", weight_simple, 0.0, 1.0)
    ranges = []
    for name, ends in (("a_range", a_range), ("b_range", b_range)):
        if isinstance(ends, str) or not isinstance(ends, Sequence) or len(ends) != 2:
            raise TypeError(f"{name}: expected two numbers (low, high), got {ends!r}")
        for position, end in enumerate(ends):
            check_number(f"{name}[{position}]", end)
        low, high = float(ends[0]), float(ends[1])
        if not low < high:
            raise ValueError(f"{name}: expected low < high, got {tuple(ends)}")
        ranges.append((low, high))
    return Search(chosen_functions(lib), ranges[0], ranges[1], float(weight_simple))


@torch.no_grad()
def candidates(x: Tensor, y: Tensor, search: Search) -> list[Candidate]:
    """Return the sorted fits of every function to a curve that is not constant."""
    x, y = x.detach().double().contiguous(), y.detach().double().contiguous()
    # pykan's search adds 1e-4 to a product of sums of squares, which would decide for values of another order than 1.
    size = float(y.std())
    unit = 1.0 if 1e-3 <= size <= 1e3 else 2.0 ** round(math.log2(size))
    y = y / unit
    found = []
    for function in search.functions:
        if function.name == ZERO and is_in_library(function):
            parameters, searched, r2 = (0.0, 0.0, 0.0, float(y.mean())), 0.0, 0.0
        else:
            _check_function(function, x)
            formula = function.name if is_in_library(function) else None
            fit = affine_fit(x, y, function.function, search.a_range, search.b_range, formula, dtype=torch.float64)
            refined, r2 = polish(function.function, x, y, fit.parameters)
            parameters, searched = normalized(function, *refined.tolist()), float(fit.r2)
        loss = search.weight_simple * function.complexity + (1 - search.weight_simple) * math.log2(1 + 1e-5 - searched)
        a, b, c, d = parameters
        found.append(Candidate(function, r2, a, b, c * unit, d * unit, loss))
    found.sort(key=lambda candidate: candidate.loss)
    for place in range(len(found) - 1):
        first, second = found[place : place + 2]
        if _same_fit(first, second) and search.functions.index(second.function) < search.functions.index(first.function):
            found[place : place + 2] = second, first
    return found


def _check_function(function: Function, x: Tensor) -> None:
    """Check that a function that the user has given is elementwise and returns floating-point numbers."""
    if is_in_library(function):
        return
    points = x[:2].expand(3, -1)
    values = function.function(points)
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = f"{values.dtype} values" if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"lib: expected a function {function.name!r} that returns a floating-point tensor, got {got} from it")
    if values.shape != points.shape:
        raise ValueError(
            f"lib: expected an elementwise function {function.name!r}, got shape {shape_of(values)} from it for shape"
            f" {shape_of(points)}"
        )


def _same_fit(one: Candidate, other: Candidate) -> bool:
    """Return whether both fit equally well and are equally simple, as sines and cosines, whose order is rounding."""
    return one.complexity == other.complexity and abs(one.r2 - other.r2) <= 1e-9 * (1 - one.r2) + 1e-14
