"""Everything of a parameter's size: knots, weights as the products read them, and gradients as the caller wants them."""

import triton
import triton.language as tl

from .product import finite, operand, power_of_two, rest


@triton.jit(do_not_specialize=["I", "T", "K", "D"])
def knots_kernel(
    grid,  # (I, T), any strides
    knots,  # out (I, T)
    step,  # out (I,): one over the knots' distance
    origin,  # out (I,): the first knot
    steepness,  # out (I,): a bound of the D-th derivative of any basis
    uniform,  # out (I,) int32: whether the knots are equidistant, up to `tolerance` steps
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
    distance = (last - first) / (T - 1).to(compute)
    farthest = tl.zeros((BI,), compute)
    for t0 in range(0, T, BT):
        t = t0 + tl.arange(0, BT)
        mask = mask_i[:, None] & (t < T)[None, :]
        knot = tl.load(row[:, None] + t[None, :].to(tl.int64) * grid_stride_t, mask=mask, other=0.0).to(compute)
        tl.store(knots + i[:, None] * T + t[None, :], knot, mask=mask)
        # Differences are exact where the knots are far from 0, and sums would be rounded as the knots were.
        away = tl.abs((knot - first[:, None]) - t[None, :].to(compute) * distance[:, None])
        farthest = tl.maximum(farthest, tl.max(tl.where(mask, away, 0.0), axis=1))
    # B^(D) of degree K is K/span times a difference of two B^(D-1) of degree K-1, which takes D such steps.
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
    tl.store(step + i, 1.0 / distance, mask=mask_i)
    tl.store(origin + i, first, mask=mask_i)
    tl.store(steepness + i, bound, mask=mask_i)
    tl.store(uniform + i, is_uniform.to(tl.int32), mask=mask_i)


@triton.jit(do_not_specialize=["M"])
def largest_kernel(
    coef,  # (I, M, O)
    scaler,  # (I, O) or unused
    base,  # (I, O) or unused
    largest,  # out (programs,): the largest |weight| that a program saw
    coef_stride_i,
    coef_stride_m,
    coef_stride_o,
    scaler_stride_i,
    scaler_stride_o,
    base_stride_i,
    base_stride_o,
    I,
    M,
    O,
    SCALED: tl.constexpr,
    HAS_BASE: tl.constexpr,
    BR: tl.constexpr,
    BO: tl.constexpr,
):
    matrices = (
        (coef, coef_stride_i, coef_stride_m, coef_stride_o),
        (scaler, scaler_stride_i, scaler_stride_o),
        (base, base_stride_i, base_stride_o),
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
            weight = _weight(matrices, i, m, o, mask, M, SCALED, HAS_BASE)
            found = tl.maximum(found, tl.abs(finite(weight)))
    tl.store(largest + tl.program_id(0), tl.max(tl.max(found, axis=1), axis=0))


@triton.jit
def _weight(matrices, i, m, o, mask, M, SCALED: tl.constexpr, HAS_BASE: tl.constexpr):
    """Weight m of feature i for outputs o, the base being weight M; 0 outside of the mask. i, m and o broadcast."""
    coef, scaler, base = matrices
    weight = tl.load(coef[0] + i * coef[1] + m * coef[2] + o * coef[3], mask=mask & (m < M), other=0.0)
    if SCALED:
        factor = tl.load(scaler[0] + i * scaler[1] + o * scaler[2], mask=mask, other=0.0)
        if coef[0].dtype.element_ty == tl.float64:
            weight = weight * factor
        else:
            # as the reference's product, which rounds to the weights' type
            weight = (weight.to(tl.float32) * factor.to(tl.float32)).to(coef[0].dtype.element_ty)
    if coef[0].dtype.element_ty != tl.float64:
        weight = weight.to(tl.float32)
    if HAS_BASE:
        base_weight = tl.load(base[0] + i * base[1] + o * base[2], mask=mask & (m == M), other=0.0).to(weight.dtype)
        weight = tl.where(m == M, base_weight, weight)
    return weight


@triton.jit(do_not_specialize=["M"])
def pack_kernel(
    coef,  # (I, M, O)
    scaler,  # (I, O) or unused
    base,  # (I, O) or unused
    largest,  # (PROGRAMS,) from `largest_kernel`, for fp16x3
    packed,  # out, at these strides: coef * scaler and base, rounded to operands
    packed_rest,  # out, as packed: what rounding left, for fp16x3
    inverse_scale,  # out (1,): what the weights have to be multiplied with again, for fp16x3
    coef_stride_i,
    coef_stride_m,
    coef_stride_o,
    scaler_stride_i,
    scaler_stride_o,
    base_stride_i,
    base_stride_o,
    packed_stride_i,  # of the bases' weights
    packed_stride_m,
    packed_stride_o,
    packed_base,  # where the base's weights begin
    packed_base_stride_i,
    packed_base_stride_o,
    I,
    M,
    O,
    SCALED: tl.constexpr,
    HAS_BASE: tl.constexpr,
    TRANSPOSED: tl.constexpr,  # whether neighbours in i, not in o, are neighbours in memory
    MODE: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BI: tl.constexpr,
    BO: tl.constexpr,
):
    tiles = tl.cdiv(O, BO)
    of_slice = tl.cdiv(I, BI) * tiles
    pid = tl.program_id(0) % of_slice
    # Slices 0 ... M-1 are the bases, the last is the base; those between are padding.
    is_base = tl.program_id(0) >= tl.num_programs(0) - of_slice
    slice_ = (tl.program_id(0) // of_slice).to(tl.int64)
    m = tl.where(is_base, M, tl.where(slice_ < M, slice_, M + 1)) + tl.zeros((1, 1), tl.int64)
    i = (pid // tiles).to(tl.int64) * BI + tl.arange(0, BI)
    o = (pid % tiles).to(tl.int64) * BO + tl.arange(0, BO)
    mask = (i < I)[:, None] & (o < O)[None, :]
    matrices = (
        (coef, coef_stride_i, coef_stride_m, coef_stride_o),
        (scaler, scaler_stride_i, scaler_stride_o),
        (base, base_stride_i, base_stride_o),
    )
    weight = _weight(matrices, i[:, None], m, o[None, :], mask, M, SCALED, HAS_BASE)
    if MODE == "fp16x3":
        scale, inverse = power_of_two(tl.max(tl.load(largest + tl.arange(0, PROGRAMS)), axis=0))
        weight = weight * scale
        tl.store(inverse_scale, inverse)  # every program the same
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


@triton.jit(do_not_specialize=["first", "M"])
def finish_kernel(
    summed,  # (M+1, I, O): the gradient of the bases' weights and of the base's
    coef,  # (all I, M, O), for the gradient of scaler
    scaler,  # (all I, O) or unused
    coef_gradient,  # out (all I, M, O)
    scaler_gradient,  # out (all I, O)
    base_gradient,  # out (all I, O)
    coef_stride_i,
    coef_stride_m,
    coef_stride_o,
    scaler_stride_i,
    scaler_stride_o,
    first,  # of the features in `summed`
    I,
    M,
    O,
    SCALED: tl.constexpr,
    NEED_COEF: tl.constexpr,
    NEED_SCALER: tl.constexpr,
    NEED_BASE: tl.constexpr,
    BO: tl.constexpr,
):
    tiles = tl.cdiv(O, BO)
    pid = tl.program_id(0)
    inner = (pid // tiles).to(tl.int64)
    i = first + inner
    o = (pid % tiles).to(tl.int64) * BO + tl.arange(0, BO)
    mask = o < O
    compute = summed.dtype.element_ty
    if NEED_COEF or NEED_SCALER:
        total = tl.zeros((BO,), compute)
        at = coef + i * coef_stride_i + o * coef_stride_o
        if SCALED:
            factor = tl.load(scaler + i * scaler_stride_i + o * scaler_stride_o, mask=mask, other=0.0).to(compute)
        for m in range(M):
            gradient = tl.load(summed + (m * I + inner) * O + o, mask=mask, other=0.0)
            if NEED_SCALER:
                total += gradient * tl.load(at, mask=mask, other=0.0).to(compute)
                at += coef_stride_m
            if NEED_COEF:
                if SCALED:
                    gradient = gradient * factor
                tl.store(coef_gradient + (i * M + m) * O + o, gradient, mask=mask)
        if NEED_SCALER:
            tl.store(scaler_gradient + i * O + o, total, mask=mask)
    if NEED_BASE:
        gradient = tl.load(summed + (M.to(tl.int64) * I + inner) * O + o, mask=mask, other=0.0)
        tl.store(base_gradient + i * O + o, gradient, mask=mask)
