"""The operators for a layer and sums of its derivatives agree with the float64 reference."""

import math

import pytest
import torch
from cases import DTYPES, Case, make
from test_operators import compare

from kan_kernels import ops, reference

# Channels and orders of the planes: a Laplacian in two dimensions, a direction up to order 4, several directions, none.
LAYOUTS = (
    ([1, 2, 3, 3], [1, 1, 1, 2]),
    ([1, 2, 2, 3, 3, 3, 4, 4, 4, 4], [1, 1, 2, 1, 2, 3, 1, 2, 3, 4]),
    ([1, 3, 3], [1, 2, 2]),
    ([], []),
)
CASES = [
    Case(0, 3, 2, weighted=True, scaled=True),
    Case(1, 1, 1, weighted=True),
    Case(7, 1, 63, weighted=True, knots="adaptive", scaled=True),
    Case(63, 7, 1, K=1, base=None, weighted=True),
    Case(129, 7, 129, weighted=True, scaled=True),
    Case(129, 33, 17, K=2, knots="adaptive", weighted=True),
    Case(300, 63, 7, G=20, base="identity", weighted=True, scaled=True),
    Case(500, 2, 65, G=100, weighted=True),
    Case(63, 3, 5, K=0, G=4, weighted=True),
    Case(63, 2, 3, K=5, weighted=True, knots="clamped", scaled=True),
    Case(63, 2, 3, K=9, weighted=True),
    Case(129, 5, 9, weighted=True, layout="strided", scaled=True),
    Case(63, 5, 9, weighted=True, layout="in_first", scaled=True),
]


def planes_and_gradients(t, channels):
    """Return w (P, N, I) and g (C, N, O), whose numbers are those of the problem in other places."""
    w = [t.w.roll(p, 0) for p in range(len(channels))]
    g = [t.g.roll(c, 0) for c in range(max(channels, default=0) + 1)]
    return torch.stack(w) if w else t.x.new_empty(0, *t.x.shape), torch.stack(g)


def forward(module, t, case, layout):
    channels, orders = LAYOUTS[layout]
    w, _ = planes_and_gradients(t, channels)
    rest = (t.spline_weight, t.spline_scaler, t.grid, t.base_weight, case.base or "silu")
    return tuple(module.spline_channels(t.x, w, *rest, channels, orders).unbind(0))


def backward(module, t, case, layout):
    channels, orders = LAYOUTS[layout]
    w, g = planes_and_gradients(t, channels)
    rest = (t.spline_weight, t.spline_scaler, t.grid, t.base_weight, case.base or "silu")
    needs = (True, True, case.scaled, case.base is not None)
    of_x, of_w, *others = module.spline_channels_backward(t.x, w, g, *rest, channels, orders, *needs)
    return of_x, *of_w.unbind(0), *others


@pytest.mark.parametrize("order", range(len(LAYOUTS)), ids=lambda k: f"layout{k}")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_channels(instruction_set, case, dtype, order):
    for operator in (forward, backward):
        compare(operator, case, dtype, order)


def test_the_reference_is_the_sum_of_the_derivatives():
    """By hand, from the values of every edge."""
    case = Case(7, 3, 2, weighted=True, scaled=True)
    t = make(case, torch.float64)
    y = forward(reference, t, case, 0)

    def of_feature(i, n):
        weights = (t.spline_weight[:, [i]], t.spline_scaler[:, [i]], t.grid[[i]], t.base_weight[:, [i]])
        return reference.spline_forward(t.x[:, [i]], None, *weights, "silu", n)

    derivatives = [torch.stack([of_feature(i, n) for i in range(3)]) for n in range(3)]  # by order: (I, N, O)
    w = [t.w.roll(p, 0).t().unsqueeze(2) for p in range(4)]
    torch.testing.assert_close(y[0], derivatives[0].sum(0))
    torch.testing.assert_close(y[1], (w[0] * derivatives[1]).sum(0))
    torch.testing.assert_close(y[2], (w[1] * derivatives[1]).sum(0))
    torch.testing.assert_close(y[3], (w[2] * derivatives[1] + w[3] * derivatives[2]).sum(0))


def arguments(requires_grad=False, dtype=torch.float64):
    case = Case(7, 3, 5, K=5, weighted=True, scaled=True, points="inside")  # on knots, derivatives can jump
    t = make(case, dtype)
    channels, orders = LAYOUTS[0]
    w, g = planes_and_gradients(t, channels)
    tensors = (t.x, w, t.spline_weight, t.spline_scaler, t.grid, t.base_weight)
    if requires_grad:
        tensors = tuple(u if u is t.grid else u.detach().clone().requires_grad_() for u in tensors)
    return (*tensors, "silu", channels, orders), g


def test_registration():
    values, g = arguments(requires_grad=True)
    torch.library.opcheck(ops.spline_channels, values)
    x, w, *rest = (v.detach() if isinstance(v, torch.Tensor) else v for v in values)
    torch.library.opcheck(ops.spline_channels_backward, (x, w, g, *rest, True, True, True, True))


def test_gradients_of_gradients():
    """All derivatives up to order two, by differences."""
    (x, w, spline_weight, scaler, grid, base, *rest), _ = arguments(requires_grad=True)

    def call(x, w, spline_weight, scaler, base):
        return ops.spline_channels(x, w, spline_weight, scaler, grid, base, *rest)

    torch.autograd.gradcheck(call, (x, w, spline_weight, scaler, base))
    torch.autograd.gradgradcheck(call, (x, w, spline_weight, scaler, base))


@pytest.mark.parametrize("place", [0, 1, 2, 5])
def test_transforms_agree_with_the_composition(place):
    """vmap, and forward mode over it, of every tensor, against the reference."""
    values, _ = arguments()

    def of(module):
        def call(value):
            return module.spline_channels(*values[:place], value, *values[place + 1 :])

        return call

    batch = torch.stack([values[place], 2 * values[place]])
    torch.testing.assert_close(torch.vmap(of(ops))(batch), torch.vmap(of(reference))(batch))
    one = torch.ones_like(values[place])
    for transformed in (
        lambda call: torch.func.jvp(call, (values[place],), (one,))[1],
        lambda call: torch.func.vmap(lambda v: torch.func.jvp(call, (v,), (one,))[1])(batch),
        lambda call: torch.func.jacrev(lambda v: call(v).sum((1, 2)))(values[place]),
        lambda call: torch.func.jacfwd(torch.func.grad(lambda v: call(v).square().sum()))(values[place]),
    ):
        torch.testing.assert_close(transformed(of(ops)), transformed(of(reference)))


def test_only_what_is_needed():
    values, g = arguments()
    x, w, *rest = values
    whole = ops.spline_channels_backward(x, w, g, *rest, True, True, True, True)
    for needs in [
        (True, False, False, False),
        (False, True, True, True),
        (False, True, False, False),
        (False, False, False, False),
    ]:
        for module in (ops, reference):
            some = module.spline_channels_backward(x, w, g, *rest, *needs)
            for gradient, full, needed in zip(some, whole, (needs[0], *needs), strict=True):
                assert tuple(gradient.shape) == (tuple(full.shape) if needed else (0,))
                if needed and module is ops:
                    assert torch.equal(gradient, full)


@pytest.mark.parametrize(
    "case", [Case(2000, 33, 65, weighted=True), Case(3000, 2, 5, G=100, weighted=True, scaled=True)], ids=str
)
def test_bits_do_not_depend_on_threads(instruction_set, case):
    t = make(case, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append((*forward(ops, t, case, 0), *backward(ops, t, case, 0)))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["x", "w", "spline_weight"])
def test_not_finite(instruction_set, what, value):
    """NaN and infinities spread as in the composition of the operators for one derivative."""
    case = Case(63, 3, 17, weighted=True, scaled=True)
    t = make(case, torch.float64)
    getattr(t, what).view(-1)[5] = value
    channels, orders = LAYOUTS[0]
    w, _ = planes_and_gradients(t, channels)
    rest = (t.spline_weight, t.spline_scaler, t.grid, t.base_weight, "silu")
    y = ops.spline_channels(t.x, w, *rest, channels, orders)
    composed = reference.spline_channels(t.x, w, *rest, channels, orders, forward=ops.spline_forward)
    assert torch.equal(y.isfinite(), composed.isfinite())
    known = y.isfinite()
    torch.testing.assert_close(y[known], composed[known])
