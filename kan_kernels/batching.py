"""The operators' vmap rules: a batch of problems as one problem where the form allows it, else one call per problem.

The form sums over rows n, features i and outputs o. A batch that only touches rows is more rows; one that only touches the
outputs (coefficients, base weights, g) is more outputs. Gradients of the coefficients sum over the rows: those of single
samples are products of bases and g. A batch of weights for batched rows, as in an ensemble of models on different data, has no
such shape and is computed problem by problem.
"""

from typing import Any, cast

import torch
from torch import Tensor

from .reference import base_activation, basis


def forward(operator, info, in_dims, arguments):
    """Rule for `spline_forward`: x and w have rows; coef, scaler and base_weight outputs."""
    x, w, coef, scaler, grid, base_weight, *rest = arguments
    b = info.batch_size
    x_dim, w_dim, coef_dim, scaler_dim, grid_dim, base_dim = in_dims[:6]
    if grid_dim is None and coef_dim is None and scaler_dim is None and base_dim is None:
        y = operator(_more_rows(x, x_dim, b), _more_rows(w, w_dim, b), coef, scaler, grid, base_weight, *rest)
        return y.view(b, _rows(x, x_dim), y.shape[-1]), 0
    if grid_dim is None and x_dim is None and w_dim is None:
        weights = [_more_outputs(t, dim, b) for t, dim in ((coef, coef_dim), (scaler, scaler_dim), (base_weight, base_dim))]
        y = operator(x, w, *weights[:2], grid, weights[2], *rest)
        return y.view(y.shape[0], b, _outputs(coef, coef_dim)), 1
    return one_by_one(operator, info, in_dims, arguments)


def backward_input(operator, info, in_dims, arguments):
    """Rule for `spline_backward_input`: x and g have rows; the outputs are summed over, so they cannot be extended."""
    x, g, *rest = arguments
    b = info.batch_size
    if all(dim is None for dim in in_dims[2:6]):
        result = operator(_more_rows(x, in_dims[0], b), _more_rows(g, in_dims[1], b), *rest)
        return result.view(b, _rows(x, in_dims[0]), result.shape[-1]), 0
    return one_by_one(operator, info, in_dims, arguments)


def backward_coef(operator, info, in_dims, arguments):
    """Rule for `spline_backward_coef`: a batch of g is more outputs; the rows are summed over."""
    x, w, g, coef, scaler, grid, *rest = arguments
    b = info.batch_size
    if in_dims[0] is None and in_dims[1] is None and in_dims[5] is None:
        wide = [_more_outputs(t, dim, b) for t, dim in zip((g, coef, scaler), in_dims[2:5], strict=True)]
        gradients = operator(x, w, *wide, grid, *rest)
        needed = rest[-3:]
        outputs = _outputs(g, in_dims[2])
        split = [d.view(*d.shape[:-1], b, outputs) if need else d for d, need in zip(gradients, needed, strict=True)]
        return tuple(split), tuple(d.dim() - 2 if need else None for d, need in zip(split, needed, strict=True))
    if b > 0 and scaler is None and in_dims[5] is None and _rows(x, in_dims[0]) <= _outputs(g, in_dims[2]):
        return _of_few_rows(b, in_dims, x, w, g, grid, *rest)
    return one_by_one(operator, info, in_dims, arguments)


def _of_few_rows(batch, in_dims, x, w, g, grid, spline_order, activation, derivative, need_coef, _, need_base):
    """Every problem's gradients as the product of its bases and its g: of few rows, bases are no larger than gradients.

    Differentiable, as all of it is torch's.
    """
    rows, w_rows, g_rows = (cast(Any, _more_rows(t, dim, batch)) for t, dim in zip((x, w, g), in_dims[:3], strict=True))
    wide = torch.promote_types(x.dtype, torch.float32)  # as the kernels evaluate and sum
    rows, of_problem = rows.to(wide), g_rows.to(wide).view(batch, -1, g_rows.shape[1])

    def summed(values: Tensor) -> Tensor:
        if w_rows is not None:
            values = values * w_rows.view(w_rows.shape + (1,) * (values.dim() - 2))
        return torch.einsum("bn...,bno->b...o", values.view(batch, -1, *values.shape[1:]), of_problem).to(x.dtype)

    none = x.new_empty(0)
    coef = summed(basis(rows, grid.to(wide), spline_order, derivative)) if need_coef else none
    base = summed(base_activation(rows, activation, derivative)) if need_base else none
    return (coef, none, base), (0 if need_coef else None, None, 0 if need_base else None)


def _rows(t: Tensor, dim: int | None) -> int:
    """Rows of one problem."""
    return t.shape[0] if dim is None else t.movedim(dim, 0).shape[1]


def _outputs(t: Tensor, dim: int | None) -> int:
    """Outputs of one problem."""
    return t.shape[-1] if dim is None else t.movedim(dim, 0).shape[-1]


def _more_rows(t: Tensor | None, dim: int | None, batch: int) -> Tensor | None:
    if t is None:
        return None
    t = t.unsqueeze(0).expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)
    return t.reshape(batch * t.shape[1], t.shape[2])


def _more_outputs(t: Tensor | None, dim: int | None, batch: int) -> Tensor | None:
    if t is None:
        return None
    t = t.unsqueeze(-2).expand(*t.shape[:-1], batch, t.shape[-1]) if dim is None else t.movedim(dim, -2)
    return t.flatten(-2)


def one_by_one(operator, info, in_dims, arguments):
    """Rule for any operator: a call per problem."""

    def problem(index):
        pairs = zip(arguments, in_dims, strict=True)
        return [a if dim is None else a.select(dim, index) for a, dim in pairs]

    if info.batch_size == 0:
        # Nothing to compute: one problem of zeros tells the shapes.
        pairs = zip(arguments, in_dims, strict=True)
        one = operator(*(a if dim is None else a.new_zeros(a.movedim(dim, 0).shape[1:]) for a, dim in pairs))
        none = tuple(r.new_empty(0, *r.shape) for r in (one if isinstance(one, tuple) else (one,)))
        return (none, (0,) * len(none)) if isinstance(one, tuple) else (none[0], 0)
    results = [operator(*problem(k)) for k in range(info.batch_size)]
    if isinstance(results[0], tuple):
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)
    return torch.stack(results), 0
