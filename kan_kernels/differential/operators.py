"""`laplacian`, `derivatives` and `hessian`: derivatives of a network's outputs with respect to its inputs in one pass."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..utils.checks import check_floating, check_number, check_size, rows_of, shape_of
from .jet import Jet, Layout
from .rules import propagate

MAX_ORDER = 4


class Laplacian(NamedTuple):
    """The result of `laplacian`, for inputs (..., F) and outputs (..., O)."""

    value: Tensor  # (..., O)
    gradient: Tensor  # (..., D, O)
    laplacian: Tensor  # (..., O)


class Derivatives(NamedTuple):
    """The result of `derivatives`, for inputs (..., F) and outputs (..., O).

    Attributes:
        value: (..., O).
        along: along[d][n - 1] is the n-th derivative along direction d, (..., O).
    """

    value: Tensor
    along: tuple[tuple[Tensor, ...], ...]


def laplacian(
    net: nn.Module, x: Tensor, weights: Sequence[float] | None = None, *, inner: tuple[Tensor, Tensor] | None = None
) -> Laplacian:
    """Return a network's outputs, their gradients and the Laplacian sum_d weights[d] d^2 y / dx_d^2, in one pass.

    The value, the first derivatives and the weighted sum of second derivatives propagate forward through the network (the
    forward Laplacian: Li et al., arXiv:2307.08214; Dangel et al., arXiv:2505.13644). The results are differentiable with
    respect to the parameters and x, any number of times.

    Args:
        net: a `KAN` or `KANLinear`, an accelerated model of efficient-kan or pykan (without symbolic edges), or an
            `nn.Sequential` of these and Linear, Tanh, SiLU, Identity, LayerNorm, Sigmoid, GELU and Softplus. Other modules
            need a rule: `register_derivative_rule`.
        x: (..., F).
        weights: F numbers, one for every input, by default ones. Inputs with weight 0 have a gradient only.
        inner: if x = x(s) is itself computed from s_1, ..., s_D, its derivatives: dx/ds_d as (D, ..., F), and
            sum_d weights[d] d^2 x / ds_d^2 as (..., F). weights then has D numbers, and derivatives are with respect to s.

    Raises:
        TypeError, ValueError: an argument is invalid (the message names it), or a module has no rule.

    Equivalent to, for one row and one output:
        hessian = torch.func.hessian(lambda x: net(x)[0])(x)
        gradient, laplacian = torch.func.jacrev(net)(x)[0], (torch.tensor(weights) * hessian.diagonal()).sum()
    """
    rows = _checked(net, x)
    if inner is None:
        first, second = _axes(rows), torch.zeros_like(rows)
    else:
        first, second = _checked_inner(inner, x)
    count = first.shape[0]
    weights = [1.0] * count if weights is None else _checked_weights(weights, count)
    layout = Layout((1,) * count, tuple(map(float, weights)))
    y = propagate(net, Jet(torch.cat([rows.unsqueeze(0), first, second.unsqueeze(0)]), layout)).channels
    y = y.view(layout.size, *x.shape[:-1], y.shape[-1])
    return Laplacian(y[0], y[1:-1].movedim(0, -2), y[-1])


def derivatives(
    net: nn.Module,
    x: Tensor,
    directions: Tensor | None = None,
    order: int | Sequence[int] = 2,
    *,
    inner: Sequence[Tensor] | None = None,
) -> Derivatives:
    """Return a network's outputs and their derivatives along directions, in one pass (Taylor mode).

    A direction costs only the orders that are asked of it. The results are differentiable with respect to the parameters and
    x, any number of times.

    Args:
        net: see `laplacian`.
        x: (..., F).
        directions: (D, F), dtype of x; by default the F axes.
        order: from 0 to 4, for all directions or for each. `order=(1, 2)` of inputs (t, x) gives u_t, u_x and u_xx.
        inner: in place of directions, if x = x(s) is itself computed: its derivatives of order 1, 2, ... with respect to
            s_1, ..., s_D, each (D, ..., F). Orders that are missing count as 0.

    Raises:
        TypeError, ValueError: an argument is invalid (the message names it), or a module has no rule.

    Equivalent to, for one row, one output and the direction v:
        d1 = torch.func.jvp(net, (x,), (v,))[1]
        d2 = torch.func.jvp(lambda x: torch.func.jvp(net, (x,), (v,))[1], (x,), (v,))[1]
    """
    rows = _checked(net, x)
    if inner is not None:
        if directions is not None:
            raise ValueError("directions: expected None because inner is given, got both")
        series = [_checked_inner_order(f"inner[{k}]", tensor, x) for k, tensor in enumerate(inner)]
        if not series or any(tensor.shape != series[0].shape for tensor in series):
            raise ValueError(f"inner: expected tensors (D, ..., F) of one shape, got {[shape_of(t) for t in series]}")
    elif directions is None:
        series = [_axes(rows)]
    else:
        series = [_checked_directions(directions, x).unsqueeze(1).expand(-1, *rows.shape)]
    count = series[0].shape[0]
    orders = _checked_orders(order, count)
    zeros = torch.zeros_like(rows)
    channels = [rows]
    for d, largest in enumerate(orders):
        channels += [series[n][d] if n < len(series) else zeros for n in range(largest)]
    layout = Layout(tuple(orders))
    y = propagate(net, Jet(torch.stack(channels), layout)).channels
    y = y.view(layout.size, *x.shape[:-1], y.shape[-1])
    along = tuple(tuple(y[layout.channel(d, n)] for n in range(1, largest + 1)) for d, largest in enumerate(orders))
    return Derivatives(y[0], along)


def hessian(net: nn.Module, x: Tensor) -> Tensor:
    """Return the second derivatives of a network's outputs, (..., F, F, O), for x (..., F).

    Mixed derivatives are those along e_i + e_j minus those along e_i and e_j, divided by 2 (polarisation), which takes
    F (F + 1) / 2 directions. See `derivatives` for net, x and what is raised.

    Equivalent to, for one row:
        torch.func.hessian(net)(x).movedim(0, -1)
    """
    _checked(net, x)
    features = x.shape[-1]
    pairs = [(i, j) for i in range(features) for j in range(i, features)]
    axes = torch.eye(features, dtype=x.dtype, device=x.device)
    directions = torch.stack([axes[i] if i == j else axes[i] + axes[j] for i, j in pairs])
    second = {pair: of_pair[1] for pair, of_pair in zip(pairs, derivatives(net, x, directions).along, strict=True)}
    rows = []
    for i in range(features):
        entries = []
        for j in range(features):
            low, high = min(i, j), max(i, j)
            mixed = second[low, high]
            entries.append(mixed if i == j else (mixed - second[i, i] - second[j, j]) / 2)
        rows.append(torch.stack(entries, -2))
    return torch.stack(rows, -3)


def _axes(rows: Tensor) -> Tensor:
    """Return the unit vectors for every row, (F, N, F)."""
    return torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device).unsqueeze(1).expand(-1, *rows.shape)


def _checked(net: Any, x: Any) -> Tensor:
    """Check net and x (..., F) and return x as (N, F)."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
    check_floating("x", x)
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"x: expected at least one feature in the last dimension, got shape {shape_of(x)}")
    return rows_of(x)


def _checked_weights(weights: Any, count: int) -> list[float]:
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise TypeError(f"weights: expected a sequence of {count} numbers, got {type(weights).__name__}")
    if len(weights) != count:
        raise ValueError(f"weights: expected {count} numbers, got {len(weights)}")
    for position, weight in enumerate(weights):
        check_number(f"weights[{position}]", weight)
    return [float(weight) for weight in weights]


def _checked_orders(order: Any, count: int) -> list[int]:
    if not isinstance(order, Sequence):
        check_size("order", order, 0)
        orders, names = [int(order)] * count, ["order"] * count
    else:
        if isinstance(order, str) or len(order) != count:
            raise ValueError(f"order: expected an int, or {count} ints, one for every direction, got {order!r}")
        orders, names = list(order), [f"order[{d}]" for d in range(count)]
    for name, n in zip(names, orders, strict=True):
        check_size(name, n, 0)
        if n > MAX_ORDER:
            raise ValueError(f"{name}: expected at most {MAX_ORDER}, got {n}")
    return [int(n) for n in orders]


def _checked_directions(directions: Any, x: Tensor) -> Tensor:
    check_floating("directions", directions)
    if directions.dim() != 2 or directions.shape[1] != x.shape[-1]:
        raise ValueError(f"directions: expected shape (D, F) with F = {x.shape[-1]}, got {shape_of(directions)}")
    _check_like("directions", directions, x)
    return directions


def _checked_inner(inner: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(inner, tuple | list) or len(inner) != 2:
        raise TypeError(f"inner: expected two tensors, (D, ..., F) and (..., F), got {type(inner).__name__}")
    first = _checked_inner_order("inner[0]", inner[0], x)
    check_floating("inner[1]", inner[1])
    _check_like("inner[1]", inner[1], x)
    if inner[1].shape != x.shape:
        raise ValueError(f"inner[1]: expected the shape {shape_of(x)} of x, got {shape_of(inner[1])}")
    return first, rows_of(inner[1])


def _checked_inner_order(name: str, tensor: Any, x: Tensor) -> Tensor:
    check_floating(name, tensor)
    _check_like(name, tensor, x)
    if tensor.dim() != x.dim() + 1 or tensor.shape[1:] != x.shape:
        raise ValueError(
            f"{name}: expected shape (D, ..., F) with the shape {shape_of(x)} of x after D, got {shape_of(tensor)}"
        )
    return tensor.reshape(len(tensor), -1, x.shape[-1])


def _check_like(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.dtype is not x.dtype:
        raise TypeError(f"{name}: expected {x.dtype}, the dtype of x, got {tensor.dtype}")
    if tensor.device != x.device:
        raise ValueError(f"{name}: expected {x.device}, the device of x, got {tensor.device}")
