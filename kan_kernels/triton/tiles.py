"""Loading tiles of rows, and bounds of a tile's values for scaling.

Related arguments are passed as tuples: a matrix is (pointer, row stride, column stride), and the knots are (knots (I, T),
step (I,), origin (I,), steepness (I,), T), see `knots_kernel`.
"""

import triton
import triton.language as tl


@triton.jit
def load_tile(matrix, n, i, mask):
    """Return matrix[n, i], 0 outside of the mask."""
    return tl.load(matrix[0] + n[:, None].to(tl.int64) * matrix[1] + i[None, :].to(tl.int64) * matrix[2], mask=mask, other=0.0)


@triton.jit
def knots_are_for(uniform, I, WAY: tl.constexpr, GUARDED: tl.constexpr):
    """Return whether WAY suits the knots, by whether all features have equidistant knots; True if not GUARDED."""
    suits = True
    if GUARDED:
        BLOCK: tl.constexpr = 256
        result = tl.full((BLOCK,), 1, tl.int32)
        for i0 in range(0, I, BLOCK):
            i = i0 + tl.arange(0, BLOCK)
            result = tl.minimum(result, tl.load(uniform + i, mask=i < I, other=1))
        suits = (tl.min(result, axis=0) > 0) == (WAY != "adaptive")
    return suits


@triton.jit
def weight_bounds(w, x, steepness, D: tl.constexpr, SPLINE: tl.constexpr, BASE: tl.constexpr):
    """Return a bound of |w| times the D-th derivative at x of all bases (SPLINE) and the base activation; shapes broadcast."""
    bound = tl.zeros(x.shape, tl.float32)
    if SPLINE:
        bound += steepness
    if BASE != "none":
        if D == 0:
            # SiLU's minimum is -0.2785, so a large negative input must not determine the scale of its row.
            bound = tl.maximum(bound, tl.where((x > 0) | (BASE == "identity"), tl.abs(x), 0.28))
        else:
            bound = tl.maximum(bound, 1.1)
    return bound * tl.abs(w)


@triton.jit
def row_bounds(
    x,
    w,
    knots,
    n,
    mask_n,
    begin,
    end,
    D: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SPLINE: tl.constexpr,
    BASE: tl.constexpr,
    BN: tl.constexpr,
    BI: tl.constexpr,
):
    """Return the maximum (BN,) of `weight_bounds` of each row n over the features begin ... end - 1."""
    bound = tl.zeros((BN,), tl.float32)
    for i0 in range(begin, end, BI):
        i = i0 + tl.arange(0, BI)
        mask = mask_n[:, None] & (i < end)[None, :]
        xs = load_tile(x, n, i, mask).to(tl.float32)
        if WEIGHTED:
            ws = load_tile(w, n, i, mask).to(tl.float32)
        else:
            ws = tl.full((BN, BI), 1.0, tl.float32)
        steepness = tl.load(knots[3] + i, mask=i < end, other=0.0).to(tl.float32)
        bound = tl.maximum(bound, tl.max(weight_bounds(ws, xs, steepness[None, :], D, SPLINE, BASE), axis=1))
    return bound


@triton.jit
def column_bounds(
    x,
    w,
    knots,
    i,
    mask_i,
    begin,
    end,
    D: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SPLINE: tl.constexpr,
    BASE: tl.constexpr,
    BN: tl.constexpr,
    BI: tl.constexpr,
):
    """Return the maximum (BI,) of `weight_bounds` of each feature i over the rows begin ... end - 1."""
    bound = tl.zeros((BI,), tl.float32)
    steepness = tl.load(knots[3] + i, mask=mask_i, other=0.0).to(tl.float32)
    for n0 in range(begin, end, BN):
        n = n0 + tl.arange(0, BN)
        mask = (n < end)[:, None] & mask_i[None, :]
        xs = load_tile(x, n, i, mask).to(tl.float32)
        if WEIGHTED:
            ws = load_tile(w, n, i, mask).to(tl.float32)
        else:
            ws = tl.full((BN, BI), 1.0, tl.float32)
        bound = tl.maximum(bound, tl.max(weight_bounds(ws, xs, steepness[None, :], D, SPLINE, BASE), axis=0))
    return bound
