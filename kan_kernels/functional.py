"""`kan_linear`: the layer as a function."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.functional import linear

from . import fallbacks, ops, reference
from .autocast import autocast, autocast_knots, same_dtype
from .autograd import spline_forward
from .checks import check_kan_linear, check_layer_dtype, rows_of
from .refusal import refuse

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

    beta_{i,m} are the M = G + K B-splines of degree K on the knots of feature i, zero outside of them (Liu et al., "KAN:
    Kolmogorov-Arnold Networks", eq. 2.10 to 2.12; the half-open intervals of efficient-kan and pykan). K and G follow from
    the shapes: K = grid.shape[1] - M - 1.

    Args:
        x: (..., I), float64, float32, bfloat16 or float16. Any leading dimensions, any strides.
        spline_weight: (O, I, M), dtype and device of x. Any strides: M contiguous, as in efficient-kan's and pykan's
            parameters and their transposes, is read as it is, others are packed first.
        grid: (I, G+2K+1), the knots of every feature in increasing order, dtype of x or wider. Not checked for order on
            every call. Its values are constants: no gradient reaches them.
        base_weight: (O, I), dtype and device of x, or None for no base activation.
        spline_scaler: (O, I), dtype and device of x, or None: every edge's factor. The layer is that of
            spline_weight * spline_scaler.unsqueeze(-1), without this product in memory.
        base_activation: the function b. "silu" and "identity" are fused; any other callable, elementwise on tensors, runs
            in plain torch.

    Returns:
        (..., O), dtype of x. Half types accumulate in float32. Under `torch.autocast` x, spline_weight, base_weight and
        spline_scaler are taken in its type first, as `F.linear` does; bases are evaluated and sums taken in float32.

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
    fused = base_activation if isinstance(base_activation, str) else None
    fused_weight = base_weight if fused is not None else None
    y = kan_form(rows, spline_weight, spline_scaler, grid, fused_weight, fused or "silu", 0)
    if base_weight is not None and callable(base_activation):
        if not torch.compiler.is_compiling():
            name = getattr(base_activation, "__name__", type(base_activation).__name__)
            fallbacks.note(f"base activation {name}", "not fused, runs in plain torch")
        y = y + linear(base_activation(rows), base_weight)
    return y.view(*x.shape[:-1], y.shape[-1]) if x.dim() != 2 else y


def kan_form(
    x: Tensor,
    spline_weight: Tensor,
    spline_scaler: Tensor | None,
    grid: Tensor,
    base_weight: Tensor | None,
    activation: str,
    derivative: int,
) -> Tensor:
    """(N, O): `kan_linear` of x (N, I) with a fused base activation, or with the derivatives of b and of the bases."""
    if computes_on_reference(x):
        return reference.spline_forward(
            x, None, spline_weight, spline_scaler, grid.detach(), base_weight, activation, derivative
        )
    return spline_forward(x, None, spline_weight, spline_scaler, grid, base_weight, activation, derivative)


def base_activation_of(module: nn.Module | None) -> BaseActivation:
    """A base activation as `kan_linear` takes it: the name of one that is fused, the module, or None."""
    kind = type(module)
    return "silu" if kind is nn.SiLU else "identity" if kind is nn.Identity else module


def refused(check: Callable[..., None], x: Tensor, *others: Any) -> Tensor | None:
    """Check arguments; what to return for bad ones while a compiler traces, who raises then."""
    if not torch.compiler.is_dynamo_compiling():
        check(x, *others)
        return None
    try:
        check(x, *others)
    except (TypeError, ValueError) as error:
        return refuse(x, error)
    return None


def refused_dtype(x: Tensor, weight: Tensor) -> Tensor | None:
    """`refused` for an input of another dtype than its layer's parameters. `kan_linear` checks what is not a tensor."""
    if not isinstance(x, Tensor) or same_dtype(x, weight):
        return None
    return refused(check_layer_dtype, x, weight)


def computes_on_reference(x: Tensor) -> bool:
    """Whether the reference computes: because the user asked for it, or because a tracer cannot handle the operators."""
    return ops.uses_reference(x) or _traced_in_forward_mode() or _exported_to_onnx()


def _traced_in_forward_mode() -> bool:
    """Whether a compiler traces forward mode, in which it computes no tangents by hand."""
    return torch.compiler.is_dynamo_compiling() and forward_ad._current_level >= 0


def _exported_to_onnx() -> bool:
    """Whether `torch.onnx.export` traces this call, for which ONNX has no operator. Quick where nothing traces."""
    if not (torch.compiler.is_exporting() or torch.jit.is_tracing()) or not torch.onnx.is_in_onnx_export():
        return False
    fallbacks.note("export to ONNX", "ONNX has no operator for splines, the graph has the reference's dense formula")
    return True
