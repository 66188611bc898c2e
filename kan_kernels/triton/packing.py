"""Kernels over the parameters: tables of the knots, packed weights for the products, and final gradients."""

import triton
import triton.language as tl

from .matmul import finite, operand, power_of_two_scale, rest


@triton.jit(do_not_specialize=["I", "T", "K", "D"])
def knots_kernel(
    grid,  # (I, T), any strides
    knots,  # out (I, T)
    step,  # out (I,): the reciprocal of the knots' distance
    origin,  # out (I,): the first knot
    steepness,  # out (I,): an upper bound of the D-th derivative of all bases
    uniform,  # out (I,) int32: whether the knots are equidistant within `tolerance` times their distance
    grid_stride_i,
    grid_stride_t,
    I,
    T,
    K,
    D,
    tolerance,
    BI: tl.constexpr,
    BT: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BI + tl.arange(0, BI)
    mask_i = i < I
    row = grid + i * grid_stride_i
    compute = knots.dtype.element_ty
    first = tl.load(row, mask=mask_i, other=0.0).to(compute)
    last = tl.load(row + (T - 1).to(tl.int64) * grid_stride_t, mask=mask_i, other=1.0).to(compute)
    # float64, since float32 divisions and products on a GPU are wrong by as much as the rounded knots of a fine grid.
    exact_first = first.to(tl.float64)
    distance = (last.to(tl.float64) - exact_first) / (T - 1).to(tl.float64)
    farthest = tl.zeros((BI,), tl.float64)
    for t0 in range(0, T, BT):
        t = t0 + tl.arange(0, BT)
        mask = mask_i[:, None] & (t < T)[None, :]
        knot = tl.load(row[:, None] + t[None, :].to(tl.int64) * grid_stride_t, mask=mask, other=0.0).to(compute)
        tl.store(knots + i[:, None] * T + t[None, :], knot, mask=mask)
        away = tl.abs((knot.to(tl.float64) - exact_first[:, None]) - t[None, :].to(tl.float64) * distance[:, None])
        farthest = tl.maximum(farthest, tl.max(tl.where(mask, away, 0.0), axis=1))
    # B^(D) of degree K is K/span times a difference of two B^(D-1) of degree K-1; the bound applies this D times.
    bound = tl.full((BI,), 1.0, compute)
    for k in range(tl.maximum(K - D, 0) + 1, K + 1):
        narrowest = tl.abs(last - first)
        for t0 in range(0, T - k, BT):
            t = t0 + tl.arange(0, BT)
            mask = mask_i[:, None] & (t < T - k)[None, :]
            at = row[:, None] + t[None, :].to(tl.int64) * grid_stride_t
            left = tl.load(at, mask=mask, other=0.0).to(compute)
            at = row[:, None] + (t + k)[None, :].to(tl.int64) * grid_stride_t
            right = tl.load(at, mask=mask, other=0.0).to(compute)
            narrowest = tl.minimum(narrowest, tl.min(tl.where(right > left, right - left, narrowest[:, None]), axis=1))
        bound = bound * (2.0 * k / narrowest)
    is_uniform = (distance > 0) & (farthest <= tolerance * distance)
    tl.store(step + i, (1.0 / distance).to(compute), mask=mask_i)
    tl.store(origin + i, first, mask=mask_i)
    tl.store(steepness + i, bound, mask=mask_i)
    tl.store(uniform + i, is_uniform.to(tl.int32), mask=mask_i)


@triton.jit(do_not_specialize=["M"])
def largest_kernel(
    spline_weight,  # (O, I, M)
    spline_scaler,  # (O, I) or unused
    base_weight,  # (O, I) or unused
    largest,  # out (programs,): the largest finite |weight| of each program
    spline_weight_stride_o,
    spline_weight_stride_i,
    spline_weight_stride_m,
    spline_scaler_stride_o,
    spline_scaler_stride_i,
    base_weight_stride_o,
    base_weight_stride_i,
    I,
    M,
    O,
    SCALED: tl.constexpr,
    HAS_BASE: tl.constexpr,
    BR: tl.constexpr,
    BO: tl.constexpr,
):
    matrices = (
        (spline_weight, spline_weight_stride_o, spline_weight_stride_i, spline_weight_stride_m),
        (spline_scaler, spline_scaler_stride_o, spline_scaler_stride_i),
        (base_weight, base_weight_stride_o, base_weight_stride_i),
    )
    found = tl.zeros((BR, BO), tl.float32)
    rows = (M + 1).to(tl.int64) * I
    for row0 in range(tl.program_id(0) * BR, rows, tl.num_programs(0) * BR):
        row = row0 + tl.arange(0, BR).to(tl.int64)
        i = (row // (M + 1))[:, None]
        m = (row % (M + 1))[:, None]
        for o0 in range(0, O, BO):
            o = (o0 + tl.arange(0, BO).to(tl.int64))[None, :]
            mask = (row < rows)[:, None] & (o < O)
            weight = weight_of(matrices, o, i, m, mask, M, SCALED, HAS_BASE)
            found = tl.maximum(found, tl.abs(finite(weight)))
    tl.store(largest + tl.program_id(0), tl.max(tl.max(found, axis=1), axis=0))


@triton.jit
def weight_of(matrices, o, i, m, mask, M, SCALED: tl.constexpr, HAS_BASE: tl.constexpr):
    """Return weight m of output o and feature i, 0 outside of the mask. Weight M is base_weight. o, i and m broadcast."""
    spline, scaler, base = matrices
    weight = tl.load(spline[0] + o * spline[1] + i * spline[2] + m * spline[3], mask=mask & (m < M), other=0.0)
    if SCALED:
        factor = tl.load(scaler[0] + o * scaler[1] + i * scaler[2], mask=mask, other=0.0)
        if spline[0].dtype.element_ty == tl.float64:
            weight = weight * factor
        else:
            # rounded to the weights' type, as in the reference
            weight = (weight.to(tl.float32) * factor.to(tl.float32)).to(spline[0].dtype.element_ty)
    if spline[0].dtype.element_ty != tl.float64:
        weight = weight.to(tl.float32)
    if HAS_BASE:
        of_base = tl.load(base[0] + o * base[1] + i * base[2], mask=mask & (m == M), other=0.0).to(weight.dtype)
        weight = tl.where(m == M, of_base, weight)
    return weight


@triton.jit(do_not_specialize=["M", "slices"])
def pack_kernel(
    spline_weight,  # (O, I, M)
    spline_scaler,  # (O, I) or unused
    base_weight,  # (O, I) or unused
    largest,  # (PROGRAMS,) from `largest_kernel`, for fp16x3
    packed,  # out, with the strides below: spline_weight * spline_scaler and base_weight, rounded to operands
    packed_rest,  # out, as packed: the rounding errors, for fp16x3
    inverse_scale,  # out (1,): the inverse of the weights' scale, for fp16x3
    spline_weight_stride_o,
    spline_weight_stride_i,
    spline_weight_stride_m,
    spline_scaler_stride_o,
    spline_scaler_stride_i,
    base_weight_stride_o,
    base_weight_stride_i,
    packed_stride_i,  # of the bases' weights
    packed_stride_m,
    packed_stride_o,
    packed_base,  # offset of base_weight
    packed_base_stride_i,
    packed_base_stride_o,
    slices,  # of the bases, including padding
    I,
    M,
    O,
    SCALED: tl.constexpr,
    HAS_BASE: tl.constexpr,
    TRANSPOSED: tl.constexpr,  # whether packed is contiguous along i instead of o
    MODE: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BI: tl.constexpr,
    BO: tl.constexpr,
):
    # Slices 0 to M - 1 are the bases, the last slice is base_weight, and those between are padding. Neighbouring programs
    # process the same edges, so that they share cache lines of spline_weight.
    slice_ = (tl.program_id(0) % (slices + 1)).to(tl.int64)
    pid = tl.program_id(0) // (slices + 1)
    is_base = slice_ == slices
    m = tl.where(is_base, M, tl.where(slice_ < M, slice_, M + 1)) + tl.zeros((1, 1), tl.int64)
    tiles = tl.cdiv(O, BO)
    i = (pid // tiles).to(tl.int64) * BI + tl.arange(0, BI)
    o = (pid % tiles).to(tl.int64) * BO + tl.arange(0, BO)
    mask = (i < I)[:, None] & (o < O)[None, :]
    matrices = (
        (spline_weight, spline_weight_stride_o, spline_weight_stride_i, spline_weight_stride_m),
        (spline_scaler, spline_scaler_stride_o, spline_scaler_stride_i),
        (base_weight, base_weight_stride_o, base_weight_stride_i),
    )
    weight = weight_of(matrices, o[None, :], i[:, None], m, mask, M, SCALED, HAS_BASE)
    if MODE == "fp16x3":
        scale, inverse = power_of_two_scale(tl.max(tl.load(largest + tl.arange(0, PROGRAMS)), axis=0))
        weight = weight * scale
        tl.store(inverse_scale, inverse)  # the same value in every program
    if is_base:
        at = packed_base + i[:, None] * packed_base_stride_i + o[None, :] * packed_base_stride_o
    else:
        at = slice_ * packed_stride_m + i[:, None] * packed_stride_i + o[None, :] * packed_stride_o
    if TRANSPOSED:
        weight = tl.trans(weight)
        mask = tl.trans(mask)
        at = tl.trans(at)
    high = operand(weight, MODE)
    tl.store(packed + at, high, mask=mask)
    if MODE == "fp16x3":
        tl.store(packed_rest + at, rest(finite(weight), finite(high)), mask=mask)


@triton.jit(do_not_specialize=["parts", "first", "features", "M"])
def finish_kernel(
    partial,  # (parts, M+1, features, O): the gradients of the bases' weights and of base_weight, to be added
    spline_weight,  # (O, I, M), for the gradient of spline_scaler
    spline_scaler,  # (O, I) or unused
    spline_weight_gradient,  # out (O, I, M), with the strides M * gradient_stride_o, M * gradient_stride_i and 1
    spline_scaler_gradient,  # out (O, I)
    base_weight_gradient,  # out (O, I)
    spline_weight_stride_o,
    spline_weight_stride_i,
    spline_weight_stride_m,
    spline_scaler_stride_o,
    spline_scaler_stride_i,
    gradient_stride_o,  # of the gradients of spline_scaler and base_weight
    gradient_stride_i,
    parts,
    first,  # first feature and number of features in `partial`
    features,
    M,
    O,
    SCALED: tl.constexpr,
    NEED_SPLINE_WEIGHT: tl.constexpr,
    NEED_SPLINE_SCALER: tl.constexpr,
    NEED_BASE_WEIGHT: tl.constexpr,
    BO: tl.constexpr,
    BM: tl.constexpr,
):
    # A program processes one feature. It reads sums that are contiguous along the outputs, and writes gradients that are
    # contiguous along the bases. Neighbouring programs process neighbouring features, whose gradients share cache lines.
    inner = (tl.program_id(0) % features).to(tl.int64)
    i = first + inner
    o = (tl.program_id(0) // features).to(tl.int64) * BO + tl.arange(0, BO)
    mask_o = o < O
    edge = o * gradient_stride_o + i * gradient_stride_i
    compute = partial.dtype.element_ty
    part = (M + 1).to(tl.int64) * features * O
    if NEED_SPLINE_WEIGHT or NEED_SPLINE_SCALER:
        total = tl.zeros((BO,), compute)
        weights = spline_weight + i * spline_weight_stride_i + o * spline_weight_stride_o
        if SCALED:
            factors = spline_scaler + i * spline_scaler_stride_i + o * spline_scaler_stride_o
            factor = tl.load(factors, mask=mask_o, other=0.0).to(compute)
        for m0 in range(0, M, BM):
            m = (m0 + tl.arange(0, BM)).to(tl.int64)
            mask = mask_o[:, None] & (m < M)[None, :]
            at = partial + ((m * features + inner) * O)[:, None] + o[None, :]
            gradient = tl.zeros((BM, BO), compute)
            for s in range(parts):
                gradient += tl.load(at + s * part, mask=tl.trans(mask), other=0.0)
            gradient = tl.trans(gradient)
            if NEED_SPLINE_SCALER:
                weight = tl.load(weights[:, None] + m[None, :] * spline_weight_stride_m, mask=mask, other=0.0).to(compute)
                total += tl.sum(gradient * weight, axis=1)
            if NEED_SPLINE_WEIGHT:
                if SCALED:
                    gradient = gradient * factor[:, None]
                tl.store(spline_weight_gradient + edge[:, None] * M + m[None, :], gradient, mask=mask)
        if NEED_SPLINE_SCALER:
            tl.store(spline_scaler_gradient + edge, total, mask=mask_o)
    if NEED_BASE_WEIGHT:
        at = partial + (M.to(tl.int64) * features + inner) * O + o
        gradient = tl.zeros((BO,), compute)
        for s in range(parts):
            gradient += tl.load(at + s * part, mask=mask_o, other=0.0)
        tl.store(base_weight_gradient + edge, gradient, mask=mask_o)
