"""Functional interface: `kan_linear`, a KAN layer, and `edge_norms`, a norm of every edge. They check, cast and dispatch."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from . import ops, reference
from .backends import log_fallback, uses_reference
from .ops.autograd import spline_forward
from .utils.autocast import autocast, autocast_knots, same_dtype
from .utils.checks import check_choice, check_kan_linear, check_layer_dtype, rows_of, shape_of
from .utils.compile_errors import refused
from .utils.torch_private import forward_mode_is_active

Norm = Literal["l1", "std"]
NORMS: tuple[Norm, ...] = get_args(Norm)
BaseActivation = Literal["silu", "identity"] | Callable[[Tensor], Tensor] | None


def kan_linear(
    x: Tensor,
    spline_weight: Tensor,
    grid: Tensor,
    base_weight: Tensor | None = None,
    *,
    spline_scaler: Tensor | None = None,
    base_activation: BaseActivation = "silu",
) -> Tensor:
    """A KAN layer: y[..., o] = sum_i ( base_weight[o,i] b(x[..., i]) + sum_m spline_weight[o,i,m] beta_{i,m}(x[..., i]) ).

    beta_{i,m} are the M = G + K B-splines of degree K on the knots of feature i. They are zero outside the knots and use
    half-open intervals, as in efficient-kan and pykan (Liu et al., "KAN: Kolmogorov-Arnold Networks", eq. 2.10 to 2.12). K and
    G follow from the shapes: K = grid.shape[1] - M - 1.

    Args:
        x: (..., I), float64, float32, bfloat16 or float16, with any leading dimensions and strides.
        spline_weight: (O, I, M), dtype and device of x, with any strides. It is read in place if M is contiguous, as in the
            parameters of efficient-kan and pykan and in their transposes; otherwise it is packed first.
        grid: (I, G+2K+1), the knots of every feature in increasing order, dtype of x or wider. The order is not checked.
            The grid is constant and receives no gradient.
        base_weight: (O, I), dtype and device of x, or None for no base activation.
        spline_scaler: (O, I), dtype and device of x, or None. It scales every edge's spline: the result equals that of
            spline_weight * spline_scaler.unsqueeze(-1), but the product is never materialised.
        base_activation: the function b. "silu" and "identity" are fused; any other elementwise callable runs in plain
            torch.

    Returns:
        (..., O), dtype of x. Half types accumulate in float32. `torch.autocast` casts x, spline_weight, base_weight and
        spline_scaler as for `F.linear`; the bases and the sums are still computed in float32.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong rank, size or device, or the grid leaves no degree K >= 0 and G >= 1.

    Equivalent to (`kan_kernels.reference`):
        bases = reference.basis(x, grid, degree=K)  # (N, I, M), Cox-de Boor
        scaled = spline_weight * spline_scaler.unsqueeze(-1)
        y = F.linear(bases.flatten(1), scaled.flatten(1)) + F.linear(F.silu(x), base_weight)
    """
    grid = autocast_knots(x, grid)
    x, spline_weight, base_weight, spline_scaler = autocast(x, spline_weight, base_weight, spline_scaler)
    refusal = refused(check_kan_linear, x, spline_weight, grid, base_weight, spline_scaler, base_activation)
    if refusal is not None:
        return refusal
    rows = rows_of(x)
    if grid.requires_grad:
        grid = grid.detach()
    fused = base_activation if isinstance(base_activation, str) else None
    fused_weight = base_weight if fused is not None else None
    y = kan_form(rows, spline_weight, spline_scaler, grid, fused_weight, fused or "silu", 0)
    if base_weight is not None and callable(base_activation):
        if not torch.compiler.is_compiling():
            name = getattr(base_activation, "__name__", type(base_activation).__name__)
            log_fallback(f"base activation {name}", "not fused, runs in plain torch")
        y = y + linear(base_values(base_activation, rows), base_weight)
    return y.view(*x.shape[:-1], y.shape[-1]) if x.dim() != 2 else y


def edge_norms(
    x: Tensor,
    spline_weight: Tensor,
    grid: Tensor,
    base_weight: Tensor | None = None,
    ord: Norm = "l1",
    *,
    spline_scaler: Tensor | None = None,
    base_activation: BaseActivation = "silu",
) -> Tensor:
    """Return a norm of every edge's function over the batch.

    The edge from feature i to output o has phi_{o,i}(t) = base_weight[o,i] b(t) + sum_m spline_weight[o,i,m] beta_{i,m}(t).
    The result is differentiable with respect to x, spline_weight, base_weight and spline_scaler. The (N, O, I) tensor of edge
    values is never materialised.

    Args:
        x: (..., I); the leading dimensions are the batch of N rows.
        spline_weight: (O, I, M).
        grid: (I, G+2K+1).
        base_weight: (O, I), or None.
        ord: "l1", the mean of `|phi|` (eq. 2.17 of the KAN paper), or "std", the unbiased standard deviation of phi (pykan's
            `edge_actscale`), computed from second moments in float64. A standard deviation within rounding error (about 1e-7
            relative to the coefficients) is set to 0, and so are its gradients.
        spline_scaler, base_activation: see `kan_linear`.

    Returns:
        (O, I), dtype of x.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong rank, size or device, ord is unknown, or x has too few rows ("l1" needs one,
            "std" needs two).

    Equivalent to (`kan_kernels.reference`):
        phi = reference.edge_values(x, spline_weight, spline_scaler, grid, base_weight, "silu")  # (N, O, I)
        norms = phi.abs().mean(0) if ord == "l1" else phi.std(0)
    """
    grid = autocast_knots(x, grid)
    x, spline_weight, base_weight, spline_scaler = autocast(x, spline_weight, base_weight, spline_scaler)
    refusal = refused(_check_edge_norms, x, spline_weight, grid, base_weight, spline_scaler, base_activation, ord)
    if refusal is not None:
        return refusal
    rows = rows_of(x)
    grid = grid.detach()
    unfused = base_weight is not None and callable(base_activation)
    if unfused and not torch.compiler.is_compiling():
        name = getattr(base_activation, "__name__", type(base_activation).__name__)
        log_fallback(f"edge norms with base activation {name}", "not fused, the (N, O, I) edge values are materialised")
    if unfused or computes_on_reference(x):
        values = edge_values(rows, spline_weight, grid, base_weight, base_activation, spline_scaler)
        return values.abs().mean(0) if ord == "l1" else values.std(0)
    activation = base_activation if isinstance(base_activation, str) else "silu"
    if ord == "l1":
        return ops.edge_l1(rows, spline_weight, spline_scaler, grid, base_weight, activation)
    moments = ops.basis_moments(rows, grid, reference.infer_spline_order(spline_weight.shape[2], grid.shape[1]), activation)
    return ops.edge_std(moments, spline_weight, spline_scaler, base_weight, rows.shape[0])


def kan_form(
    x: Tensor,
    spline_weight: Tensor,
    spline_scaler: Tensor | None,
    grid: Tensor,
    base_weight: Tensor | None,
    activation: str,
    derivative: int,
) -> Tensor:
    """Return `kan_linear` (N, O) of x (N, I) for a fused b, with b and the bases replaced by their n-th derivatives."""
    if computes_on_reference(x):
        return reference.spline_forward(
            x, None, spline_weight, spline_scaler, grid.detach(), base_weight, activation, derivative
        )
    return spline_forward(x, None, spline_weight, spline_scaler, grid, base_weight, activation, derivative)


def kan_channels(
    x: Tensor,
    planes: Sequence[Tensor],
    channels: Sequence[int],
    orders: Sequence[int],
    spline_weight: Tensor,
    grid: Tensor,
    base_weight: Tensor | None,
    spline_scaler: Tensor | None,
    activation: str,
) -> Tensor:
    """Return `kan_linear` (N, O) of x (N, I) for a fused b, and sums of its derivatives, (C, N, O).

    Channel channels[p] is a sum with the term sum_i planes[p][n,i] phi^(orders[p])(x[n,i]), see `reference.spline_channels`.
    """
    grid = autocast_knots(x, grid)
    x, spline_weight, base_weight, spline_scaler, *planes = autocast(x, spline_weight, base_weight, spline_scaler, *planes)
    refusal = refused(check_kan_linear, x, spline_weight, grid, base_weight, spline_scaler, activation)
    if refusal is not None:
        return refusal
    if not planes:
        return kan_form(x, spline_weight, spline_scaler, grid.detach(), base_weight, activation, 0).unsqueeze(0)
    arguments = (torch.stack(list(planes)), spline_weight, spline_scaler, grid.detach(), base_weight, activation)
    channels, orders = list(channels), list(orders)
    if computes_on_reference(x):
        return reference.spline_channels(x, *arguments, channels, orders)
    return ops.spline_channels(x, *arguments, channels, orders)


def base_values(base_activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return a base activation that is not fused, at x (N, I)."""
    values = base_activation(x)
    if not isinstance(values, Tensor):
        raise TypeError(f"base_activation: expected a function that returns a tensor, got {type(values).__name__} from it")
    if values.shape != x.shape:
        raise ValueError(
            f"base_activation: expected an elementwise function, got shape {shape_of(values)} from it for shape {shape_of(x)}"
        )
    return values


def is_observed(module: nn.Module) -> bool:
    """Return whether a module has hooks, or another forward on the instance."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooked) or "forward" in vars(module)


def base_activation_of(module: nn.Module | None) -> BaseActivation:
    """Return the `base_activation` argument of `kan_linear` for a module: a fused function's name, the module or None.

    A module with hooks, or with another forward on the instance, is called.
    """
    kind = type(module)
    name: BaseActivation = "silu" if kind is nn.SiLU else "identity" if kind is nn.Identity else module
    return name if module is None or name is module or not is_observed(module) else module


def refused_dtype(x: Tensor, weight: Tensor) -> Tensor | None:
    """Call `refused` if the dtypes of the input and the layer's parameters differ. Non-tensors are left to `kan_linear`."""
    if not isinstance(x, Tensor) or same_dtype(x, weight):
        return None
    return refused(check_layer_dtype, x, weight)


def computes_on_reference(x: Tensor) -> bool:
    """Return whether to use the reference: the user selected it, or the active tracer does not support the operators."""
    return uses_reference(x) or _traced_in_forward_mode() or _exported_to_onnx()


def _traced_in_forward_mode() -> bool:
    """Return whether torch.compile traces forward-mode AD, which does not run the operators' own jvp rules."""
    return torch.compiler.is_dynamo_compiling() and forward_mode_is_active()


def _exported_to_onnx() -> bool:
    """Return whether `torch.onnx.export` traces this call. This is cheap if nothing is being traced."""
    if not (torch.compiler.is_exporting() or torch.jit.is_tracing()) or not torch.onnx.is_in_onnx_export():
        return False
    log_fallback("export to ONNX", "ONNX has no spline operator, the graph contains the reference's dense formula")
    return True


def _check_edge_norms(x, spline_weight, grid, base_weight, spline_scaler, base_activation, ord):
    check_kan_linear(x, spline_weight, grid, base_weight, spline_scaler, base_activation)
    check_choice("ord", ord, NORMS)
    least = 1 if ord == "l1" else 2
    if math.prod(x.shape[:-1]) < least:
        rows = f"{least} row{'s' * (least > 1)}"
        raise ValueError(f"x: expected at least {rows} for ord {ord!r}, got shape {shape_of(x)}")


def edge_values(
    x: Tensor,
    spline_weight: Tensor,
    grid: Tensor,
    base_weight: Tensor | None,
    base_activation: BaseActivation,
    spline_scaler: Tensor | None,
) -> Tensor:
    """Return the (N, O, I) edge values on x (N, I), computed by the reference. The arguments are those of `edge_norms`."""
    if base_weight is not None and callable(base_activation):
        splines = reference.edge_values(x, spline_weight, spline_scaler, grid, None, "silu")
        return splines + base_values(base_activation, x).unsqueeze(1) * base_weight
    activation = base_activation if isinstance(base_activation, str) else "silu"
    return reference.edge_values(x, spline_weight, spline_scaler, grid, base_weight, activation)
