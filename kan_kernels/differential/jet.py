"""`Jet`: values together with derivatives along directions, and the rules that propagate them through functions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Term:
    """A product: factor * channel[0] * channel[1] * ..., which multiplies a derivative of order `order`."""

    order: int
    factor: float
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """The channels of a jet. Channel 0 is the value.

    Attributes:
        orders: for every direction, the largest order n: its channels are its derivatives of order 1 to n.
        weights: of every direction in the last channel, the weighted sum of second derivatives; None without such a channel.
    """

    orders: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    @cached_property
    def size(self) -> int:
        """The number of channels."""
        return 1 + sum(self.orders) + (self.weights is not None)

    def channel(self, direction: int, order: int) -> int:
        """Return the channel of a derivative."""
        return sum(self.orders[:direction]) + order

    @cached_property
    def terms(self) -> tuple[tuple[int, tuple[Term, ...]], ...]:
        """For every channel but the first, its terms by Faa di Bruno's formula: sums of products times f', f'', ..."""
        found: list[tuple[int, tuple[Term, ...]]] = []
        for direction, largest in enumerate(self.orders):
            for order in range(1, largest + 1):
                terms = [
                    Term(len(parts), factor, tuple(self.channel(direction, part) for part in parts))
                    for parts, factor in _partitions(order)
                ]
                found.append((self.channel(direction, order), tuple(terms)))
        if self.weights is not None:
            last = self.size - 1
            squares = [Term(2, w, (self.channel(d, 1),) * 2) for d, w in enumerate(self.weights) if w != 0]
            found.append((last, (Term(1, 1.0, (last,)), *squares)))
        return tuple(found)

    @cached_property
    def planes(self) -> tuple[list[int], list[int]]:
        """The channels and the orders of the planes of `Jet.planes`."""
        pairs = [(channel, order) for channel, terms in self.terms for order in sorted({term.order for term in terms})]
        return [channel for channel, _ in pairs], [order for _, order in pairs]


def _partitions(n: int, largest: int | None = None) -> list[tuple[tuple[int, ...], float]]:
    """Return the partitions of n and the number of ways to split n distinct objects into blocks of these sizes."""

    def parts(rest: int, most: int) -> list[tuple[int, ...]]:
        if rest == 0:
            return [()]
        return [(first, *others) for first in range(min(rest, most), 0, -1) for others in parts(rest - first, first)]

    def ways(sizes: tuple[int, ...]) -> float:
        blocks = math.prod(math.factorial(size) for size in sizes)
        alike = math.prod(math.factorial(sizes.count(size)) for size in set(sizes))
        return math.factorial(n) / (blocks * alike)

    return [(sizes, ways(sizes)) for sizes in parts(n, n)]


class Jet:
    """A function's values on a batch and its derivatives there.

    A rule for a module receives the jet of its input and returns the jet of its output, by one of the methods below.

    Attributes:
        channels: (C, N, F), the values and the derivatives.
        layout: the meaning of the channels.
    """

    def __init__(self, channels: Tensor, layout: Layout) -> None:
        self.channels = channels
        self.layout = layout

    @property
    def value(self) -> Tensor:
        """The values, (N, F)."""
        return self.parts[0]

    @cached_property
    def parts(self) -> tuple[Tensor, ...]:
        """Every channel, (N, F). One `unbind` has one backward, where indexing has a tensor of zeros for every channel."""
        return self.channels.unbind(0)

    def linear(self, function: Callable[[Tensor], Tensor], bias: Tensor | None = None) -> "Jet":
        """Return the jet of function(x) + bias for a linear function (..., F) -> (..., O)."""
        channels = function(self.channels)
        if bias is not None:
            channels = torch.cat([channels[:1] + bias, channels[1:]])
        return Jet(channels, self.layout)

    def elementwise(self, function: Callable[[Tensor, int], Tensor]) -> "Jet":
        """Return the jet of f(x) for an elementwise f: function(x, n) is the n-th derivative of f at x (N, F), n >= 0."""
        channels, orders = self.layout.planes
        x = self.value
        derivatives = {n: function(x, n) for n in sorted(set(orders))}
        results: list[Tensor | None] = [function(x, 0), *(None for _ in range(self.layout.size - 1))]
        for channel, order, plane in zip(channels, orders, self.planes(), strict=True):
            term = plane * derivatives[order]
            before = results[channel]
            results[channel] = term if before is None else before + term
        return Jet(torch.stack([result for result in results if result is not None]), self.layout)

    def compose(self, function: Callable[[Tensor], Tensor]) -> "Jet":
        """Return the jet of function(x) for any function (N, F) -> (N, O) that maps every row independently.

        The derivatives are those of function(x(t)) for curves x(t), by nested calls of `torch.func.jvp`. This is slower than
        `elementwise` and `linear`.
        """
        layout, x = self.layout, self.value
        results = [function(x)]
        second: list[Tensor] = []
        for direction, largest in enumerate(layout.orders):
            series = [self.parts[layout.channel(direction, order)] for order in range(1, largest + 1)]
            results += [_along_curve(function, x, series[:order]) for order in range(1, largest + 1)]
            if layout.weights is not None and layout.weights[direction] != 0:
                straight = _along_curve(function, x, [series[0], torch.zeros_like(x)])
                second.append(layout.weights[direction] * straight)
        if layout.weights is not None:
            results.append(sum(second, _along_curve(function, x, [self.parts[-1]])))
        return Jet(torch.stack(results), self.layout)

    def planes(self) -> list[Tensor]:
        """Return the factors (N, F) of f', f'', ... in every channel but the first, in the order of `Layout.planes`."""
        planes: list[Tensor] = []
        for _, terms in self.layout.terms:
            for order in sorted({term.order for term in terms}):
                products = [self._product(term) for term in terms if term.order == order]
                planes.append(sum(products[1:], products[0]))
        return planes

    def _product(self, term: Term) -> Tensor:
        product = self.parts[term.channels[0]]
        for channel in term.channels[1:]:
            product = product * self.parts[channel]
        return product if term.factor == 1 else product * term.factor

    def __mul__(self, other: "Jet") -> "Jet":
        """Return the jet of the elementwise product, by Leibniz' rule."""
        layout, a, b = self.layout, self.parts, other.parts
        results = [a[0] * b[0]]
        for direction, largest in enumerate(layout.orders):
            places = [0, *(layout.channel(direction, order) for order in range(1, largest + 1))]
            for n in range(1, largest + 1):
                terms = [math.comb(n, k) * a[places[k]] * b[places[n - k]] for k in range(n + 1)]
                results.append(sum(terms[1:], terms[0]))
        if layout.weights is not None:
            total = a[0] * b[-1] + a[-1] * b[0]
            for direction, weight in enumerate(layout.weights):
                if weight != 0:
                    place = layout.channel(direction, 1)
                    total = total + 2 * weight * a[place] * b[place]
            results.append(total)
        return Jet(torch.stack(results), self.layout)

    def __getitem__(self, features: slice | Sequence[int]) -> "Jet":
        """Return the jet of some features."""
        return Jet(self.channels[..., features], self.layout)


def _along_curve(function: Callable[[Tensor], Tensor], x: Tensor, series: Sequence[Tensor]) -> Tensor:
    """Return the derivative of order len(series) of function(x + t series[0] + t^2 / 2 series[1] + ...) at t = 0."""

    def at(t: Tensor) -> Tensor:
        total, power = x, t
        for n, coefficient in enumerate(series, 1):
            total = total + power / math.factorial(n) * coefficient
            power = power * t
        return function(total)

    def derivative(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda t: torch.func.jvp(f, (t,), (torch.ones_like(t),))[1]

    nested: Callable[[Tensor], Tensor] = at
    for _ in series:
        nested = derivative(nested)
    return nested(x.new_zeros(()))
