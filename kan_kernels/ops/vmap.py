"""vmap rules of the operators. A batch of problems is merged into one problem if possible, else each is a separate call.

The form sums over rows n, features i and outputs o. If only x and w are batched, the batch becomes more rows; if only
spline_weight, spline_scaler, base_weight or g are batched, it becomes more outputs. Parameter gradients sum over the rows;
per-sample gradients are products of bases and g. If both weights and rows are batched, e.g. for an ensemble of models on
different data, there is one call per problem.
"""

from typing import Any, cast

import torch
from torch import Tensor

from ..reference import base_activation, basis


def forward(operator, info, in_dims, arguments):
    """Rule for `spline_forward`: merge x and w along rows, or spline_weight, spline_scaler and base_weight along outputs."""
    x, w, spline_weight, spline_scaler, grid, base_weight, *rest = arguments
    b = info.batch_size
    x_dim, w_dim, weight_dim, scaler_dim, grid_dim, base_dim = in_dims[:6]
    if grid_dim is None and weight_dim is None and scaler_dim is None and base_dim is None:
        rows, w_rows = _more(x, x_dim, b), _more(w, w_dim, b)
        y = operator(rows, w_rows, spline_weight, spline_scaler, grid, base_weight, *rest)
        return y.view(b, _first(x, x_dim), y.shape[-1]), 0
    if grid_dim is None and x_dim is None and w_dim is None:
        wide_weight, wide_scaler = _more(spline_weight, weight_dim, b), _more(spline_scaler, scaler_dim, b)
        y = operator(x, w, wide_weight, wide_scaler, grid, _more(base_weight, base_dim, b), *rest)
        return y.view(y.shape[0], b, _first(spline_weight, weight_dim)), 1
    return one_by_one(operator, info, in_dims, arguments)


def backward_input(operator, info, in_dims, arguments):
    """Rule for `spline_backward_input`: merge x and g along rows. Outputs are summed over and cannot be merged."""
    x, g, *rest = arguments
    b = info.batch_size
    if all(dim is None for dim in in_dims[2:6]):
        result = operator(_more(x, in_dims[0], b), _more(g, in_dims[1], b), *rest)
        return result.view(b, _first(x, in_dims[0]), result.shape[-1]), 0
    return one_by_one(operator, info, in_dims, arguments)


def backward_weight(operator, info, in_dims, arguments):
    """Rule for `spline_backward_weight`: merge g along outputs. Rows are summed over and cannot be merged."""
    x, w, g, spline_weight, spline_scaler, grid, *rest = arguments
    b = info.batch_size
    if in_dims[0] is None and in_dims[1] is None and in_dims[5] is None:
        needs, outputs = rest[-3:], _last(g, in_dims[2])
        wide_g = _problems(g, in_dims[2], b).movedim(0, 1).flatten(1)
        wide_weight = _more(spline_weight if needs[1] else None, in_dims[3], b)
        gradients = operator(x, w, wide_g, wide_weight, _more(spline_scaler, in_dims[4], b), grid, *rest)
        split = [d.unflatten(0, (b, outputs)) if need else d for d, need in zip(gradients, needs, strict=True)]
        return tuple(split), tuple(0 if need else None for need in needs)
    if b > 0 and spline_scaler is None and in_dims[5] is None and _first(x, in_dims[0]) <= _last(g, in_dims[2]):
        return _of_few_rows(b, in_dims, x, w, g, grid, *rest)
    return one_by_one(operator, info, in_dims, arguments)


def channels(operator, info, in_dims, arguments):
    """Rule for `spline_channels`: merge x and w along rows."""
    x, w, *rest = arguments
    b = info.batch_size
    if all(dim is None for dim in in_dims[2:6]):
        planes = _problems(w, in_dims[1], b).movedim(0, 1).flatten(1, 2)
        y = operator(_more(x, in_dims[0], b), planes, *rest)
        return y.unflatten(1, (b, _first(x, in_dims[0]))), 1
    return one_by_one(operator, info, in_dims, arguments)


def _of_few_rows(batch, in_dims, x, w, g, grid, spline_order, activation, derivative, *needs):
    """Compute per-problem gradients as products of bases and g. With few rows the bases are no larger than the gradients.

    All operations are torch's, so the result is differentiable.
    """
    need_spline_weight, _, need_base_weight = needs
    rows, w_rows, g_rows = (cast(Any, _more(t, dim, batch)) for t, dim in zip((x, w, g), in_dims[:3], strict=True))
    wide = torch.promote_types(x.dtype, torch.float32)  # the kernels' dtype for bases and sums
    rows, of_problem = rows.to(wide), g_rows.to(wide).view(batch, -1, g_rows.shape[1])

    def summed(values: Tensor) -> Tensor:
        if w_rows is not None:
            values = values * w_rows.view(w_rows.shape + (1,) * (values.dim() - 2))
        return torch.einsum("bno,bn...->bo...", of_problem, values.view(batch, -1, *values.shape[1:])).to(x.dtype)

    none = x.new_empty(0)
    of_spline_weight = summed(basis(rows, grid.to(wide), spline_order, derivative)) if need_spline_weight else none
    of_base_weight = summed(base_activation(rows, activation, derivative)) if need_base_weight else none
    return (of_spline_weight, none, of_base_weight), (0 if need_spline_weight else None, None, 0 if need_base_weight else None)


def _first(t: Tensor, dim: int | None) -> int:
    """Return the number of rows of one problem's x, w or g, or of outputs of its spline_weight."""
    return t.shape[0] if dim is None else t.movedim(dim, 0).shape[1]


def _last(t: Tensor, dim: int | None) -> int:
    """Return the number of outputs of one problem's g."""
    return t.shape[-1] if dim is None else t.movedim(dim, 0).shape[-1]


def _more(t: Tensor | None, dim: int | None, batch: int) -> Tensor | None:
    """Merge the tensors (n, ...) of b problems to (b n, ...), along rows for x, w and g and along outputs for weights."""
    return None if t is None else _problems(t, dim, batch).flatten(0, 1)


def _problems(t: Tensor, dim: int | None, batch: int) -> Tensor:
    """Return the tensors of all problems with the batch dimension first, (b, ...)."""
    return t.unsqueeze(0).expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)


def one_by_one(operator, info, in_dims, arguments):
    """Rule for any operator: one call per problem."""
    in_dims = [dim if isinstance(a, Tensor) else None for a, dim in zip(arguments, in_dims, strict=True)]  # lists have lists

    def problem(index):
        pairs = zip(arguments, in_dims, strict=True)
        return [a if dim is None else a.select(dim, index) for a, dim in pairs]

    if info.batch_size == 0:
        # Determine the result shapes from one problem of zeros.
        pairs = zip(arguments, in_dims, strict=True)
        one = operator(*(a if dim is None else a.new_zeros(a.movedim(dim, 0).shape[1:]) for a, dim in pairs))
        none = tuple(r.new_empty(0, *r.shape) for r in (one if isinstance(one, tuple) else (one,)))
        return (none, (0,) * len(none)) if isinstance(one, tuple) else (none[0], 0)
    results = [operator(*problem(k)) for k in range(info.batch_size)]
    if isinstance(results[0], tuple):
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)
    return torch.stack(results), 0
