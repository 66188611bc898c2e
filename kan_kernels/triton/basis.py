"""Evaluation of the bases for a tile of inputs, in registers.

`WAY` selects one of three methods:

- "direct" requires equidistant knots, operands of at most 11 bits, and D < K. It evaluates every basis separately, as a sum
  of truncated powers of the distance from its centre (de Boor, "A Practical Guide to Splines", ch. IX): nine operations for a
  cubic.
- "uniform" requires equidistant knots. It finds the input's interval by comparison with the knots, then computes the K+1
  nonzero values with Cox-de Boor from the position within the interval. It is as accurate for G = 100 as for G = 5.
- "adaptive" supports any non-decreasing knots. It uses a binary search, then Cox-de Boor on the surrounding 2K knots.

Knots are looked up one at a time. The hint `max_contiguous` claims that the knots of neighbouring features are contiguous.
Without it, Triton picks another layout for these loads than for x and moves every tile through shared memory. The hint claims
no alignment, so that Triton still loads single values.

Comparison assigns the K+1 nonzero ("live") values to their bases: basis m = j - K + l has the l-th value of interval j.
"""

import triton
import triton.language as tl


@triton.jit
def activation(x, D: tl.constexpr, BASE: tl.constexpr):
    """Return the D-th derivative of the base activation b at x; see `reference.base_activation` for the polynomials."""
    if BASE == "identity":
        if D == 0:
            r = x
        else:
            r = tl.full(x.shape, 1.0 if D == 1 else 0.0, x.dtype)
    elif D == 0:
        r = x / (1.0 + tl.exp(-x))
    else:
        s = 1.0 / (1.0 + tl.exp(-x))
        q = 1.0 / (1.0 + tl.exp(x))
        r = x * _sigmoid(s, q, D) + D * _sigmoid(s, q, D - 1)
    return r


@triton.jit
def _sigmoid(s, q, D: tl.constexpr):
    """Return the D-th derivative of the sigmoid from s = sigmoid(x) and q = sigmoid(-x), D <= 5."""
    z = q - s
    if D == 0:
        r = s
    elif D == 1:
        r = s * q
    elif D == 2:
        r = s * q * z
    elif D == 3:
        r = s * q * (1.5 * z * z - 0.5)
    elif D == 4:
        r = s * q * z * (3.0 * z * z - 2.0)
    else:
        r = s * q * (7.5 * z * z * (z * z - 1.0) + 1.0)
    return r


@triton.jit
def evaluate(x, i, tables, K: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, WAY: tl.constexpr):
    """Return the state for `basis_slice` for a tile of inputs x (rows, features) and the features i (features,).

    The state is a tuple of tiles: for "direct" the scaled position, otherwise the interval, the value of the dead bases, and
    the K+1 live values. Derivatives are in units of `unit`. DEPTH satisfies 2^DEPTH > T.
    """
    knots, step, origin, _, T = tables
    if WAY == "direct":
        scale = _root_of_factorial(K - D)
        s = tl.load(step + i)[None, :] * scale
        # x - x is NaN for NaN and infinite x, as in the reference
        state = ((x - tl.load(origin + i)[None, :]) * s + (x - x),)
    elif WAY == "uniform":
        s = tl.load(step + i)[None, :]
        near = tl.floor((x - tl.load(origin + i)[None, :]) * s - 0.5)  # the interval or the one before
        near = tl.minimum(tl.where(near > 0.0, near, 0.0), T - 2.0).to(tl.int32)  # 0 for NaN, for a valid index
        at = knots + (i * T)[None, :] + near
        if at.shape[1] > 1:
            at = tl.max_contiguous(at, [1, 4])  # see the top of this file
        low = tl.load(at)
        high = tl.load(at + 1)
        interval = near + (x >= high).to(tl.int32)
        low = tl.where(x >= high, high, low)
        state = _from_interval(x, x >= low, interval, K, D) + _live_uniform((x - low) * s, K, D)
    else:
        at = knots + (i * T)[None, :]
        interval = tl.zeros(x.shape, tl.int32)
        for k in tl.static_range(0, DEPTH):
            further = interval + (1 << (DEPTH - 1 - k))
            nearest = at + tl.minimum(further, T - 1)
            if nearest.shape[1] > 1:
                nearest = tl.max_contiguous(nearest, [1, 4])
            knot = tl.load(nearest).to(x.dtype)
            interval = tl.where((further < T) & (x >= knot), further, interval)
        state = _from_interval(x, x >= tl.load(at).to(x.dtype), interval, K, D) + _live_adaptive(x, at, interval, T, K, D)
    return state


@triton.jit
def _from_interval(x, inside, interval, K: tl.constexpr, D: tl.constexpr):
    """Return the interval, -1 for x below the knots, and the value of the dead bases."""
    if K > D:
        dead = x - x  # NaN for NaN and infinite x, as in the reference
    else:
        dead = tl.zeros(x.shape, x.dtype)
    return (tl.where(inside, interval, -1), dead)


@triton.jit
def _live_uniform(r, K: tl.constexpr, D: tl.constexpr):
    """Return the K+1 live values at position 0 <= r < 1 in the interval, for knots at distance 1."""
    values = (tl.full(r.shape, 1.0, r.dtype),)
    carry = values[0]
    for k in tl.static_range(1, K + 1):
        new = ()
        for q in tl.static_range(0, k):
            if k > K - D:
                low = -values[q]
                high = values[q]
            else:
                share = values[q] * (1.0 / k)
                low = (q + 1.0 - r) * share
                high = (r + (k - 1.0 - q)) * share
            if q > 0:
                low += carry
            new = new + (low,)
            carry = high
        values = new + (carry,)
    return values


@triton.jit
def _live_adaptive(x, at, interval, T, K: tl.constexpr, D: tl.constexpr):
    """Return the K+1 live values from the knots interval + 1 - K ... interval + K. A quotient by an empty span is 0."""
    around = ()
    for k in tl.static_range(0, 2 * K):
        nearest = at + tl.minimum(tl.maximum(interval + (k + 1 - K), 0), T - 1)
        if nearest.shape[1] > 1:
            nearest = tl.max_contiguous(nearest, [1, 4])
        around = around + (tl.load(nearest).to(x.dtype),)
    values = (tl.full(x.shape, 1.0, x.dtype),)
    carry = values[0]
    for k in tl.static_range(1, K + 1):
        new = ()
        for q in tl.static_range(0, k):
            span = around[K + q] - around[K - k + q]
            share = tl.where(span > 0, _quotient(values[q], tl.where(span > 0, span, 1.0)), 0.0)
            if k > K - D:
                low = share * -k
                high = share * k
            else:
                low = (around[K + q] - x) * share
                high = (x - around[K - k + q]) * share
            if q > 0:
                low += carry
            new = new + (low,)
            carry = high
        values = new + (carry,)
    return values


@triton.jit
def _quotient(a, b):
    """Return a / b, rounded as on a CPU; Triton's own float32 quotient on a GPU can be off by 2 ulp."""
    if a.dtype == tl.float32:
        r = tl.math.div_rn(a, b)
    else:
        r = a / b
    return r


@triton.jit
def unit(x, i, tables, D: tl.constexpr, WAY: tl.constexpr):
    """Return the factor of x's shape that converts derivatives of `evaluate`, for knots at distance 1, to the actual knots."""
    factor = tl.full(x.shape, 1.0, x.dtype)
    if WAY != "adaptive":
        for _ in tl.static_range(0, D):
            factor = factor * tl.load(tables[1] + i)[None, :]
    return factor


@triton.jit
def weighted(state, w, WAY: tl.constexpr):
    """Return the state with every basis multiplied by w, of x's shape."""
    if WAY == "direct":
        result = (state[0], w)
    else:
        result = (state[0], state[1])
        for k in tl.static_range(2, len(state)):
            result = result + (state[k] * w,)
    return result


@triton.jit
def basis_slice(state, m, K: tl.constexpr, D: tl.constexpr, WAY: tl.constexpr):
    """Return the D-th derivative of basis m, of x's shape."""
    if WAY == "direct":
        r = _truncated_powers(state[0] - (m + 0.5 * (K + 1)) * _root_of_factorial(K - D), K, D)
        if len(state) > 1:
            r = r * state[1]
    else:
        place = state[0] - m
        r = tl.where(place == K, state[2], state[1])
        for k in tl.static_range(1, K + 1):
            r = tl.where(place == K - k, state[2 + k], r)
    return r


@triton.jit
def bases_tile(state, m0, M, K: tl.constexpr, D: tl.constexpr, WAY: tl.constexpr, MC: tl.constexpr):
    """Return (rows, features * MC): column i * MC + c is basis m0 + c of feature i; bases from M on are 0.

    The tile is joined in registers. If the state were broadcast along a new axis, every thread along it would evaluate it.
    """
    parts = ()
    for c in tl.static_range(0, MC):
        m = tl.where(m0 + c < M, m0 + c, -(1 << 20))  # a basis far from every x
        parts = parts + (basis_slice(state, m, K, D, WAY),)
    for level in tl.static_range(1, _levels(MC)):
        joined = ()
        for c in tl.static_range(0, MC >> level):
            joined = joined + (tl.join(parts[c], parts[c + (MC >> level)]),)
        parts = joined
    return tl.reshape(parts[0], (state[0].shape[0], state[0].shape[1] * MC))


@triton.jit
def _truncated_powers(v, K: tl.constexpr, D: tl.constexpr):
    """Return the D-th derivative of the centred B-spline, knots at distance 1, at distance v / c, c^(K-D) = 1 / (K-D)!."""
    scale = _root_of_factorial(K - D)
    a = tl.abs(v)
    r = _power(_positive(0.5 * (K + 1) * scale - a), K - D)
    if K > 1:
        r = r - (K + 1.0) * _power(_positive((0.5 * (K + 1) - 1) * scale - a), K - D)
    if K > 3:
        r = r + (0.5 * K * (K + 1)) * _power(_positive((0.5 * (K + 1) - 2) * scale - a), K - D)
    if D % 2 == 1:
        r = tl.where(v < 0, r, -r)
    return r


@triton.jit
def _positive(a):
    return tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _power(a, E: tl.constexpr):
    r = a
    for _ in tl.static_range(1, E):
        r = r * a
    return r


@triton.constexpr_function
def _root_of_factorial(e):
    """Return (1 / e!)^(1 / e). With this scale a power needs no division by e!."""
    factorial = 1.0
    for k in range(2, e + 1):
        factorial *= k
    return factorial ** (-1.0 / e) if e > 0 else 1.0


@triton.constexpr_function
def _levels(parts):
    return parts.bit_length()
