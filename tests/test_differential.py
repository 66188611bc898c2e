"""`laplacian`, `derivatives` and `hessian` equal nested autograd for every kind of network, and refuse unknown modules."""

import copy
import math

import peer_layers
import pytest
import torch
from pykan_models import affine, masked, network, symbolic
from torch import nn

import kan_kernels as kk
from kan_kernels.differential.jet import Jet, Layout

F64 = torch.float64


class Sin(nn.Module):
    def forward(self, x):
        return torch.sin(x)


class ExactLayerNorm(nn.Module):
    """The formula of a LayerNorm, because torch's own derivatives of order 3 and more are wrong (torch 2.13)."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.square().mean(-1, keepdim=True) + self.norm.eps).rsqrt() * self.norm.weight + self.norm.bias


def differentiable(net):
    """Return the network with the same parameters and exact norms."""
    if not isinstance(net, nn.Sequential):
        return net
    return nn.Sequential(*(ExactLayerNorm(module) if isinstance(module, nn.LayerNorm) else module for module in net))


def pruned():
    net = kk.KAN([3, 4, 2], dtype=F64)
    net.layers[0].edge_mask = (torch.rand(4, 3) > 0.3).double()
    return net


def adaptive():
    net = kk.KAN([2, 5, 1], spline_order=4, dtype=F64)
    net.update_grid(torch.randn(200, 2, dtype=F64).clamp(-1.5, 1.5))
    return net


NETWORKS = {
    "KAN": lambda: kk.KAN([2, 5, 3], dtype=F64),
    "KANLinear": lambda: kk.KANLinear(3, 4, spline_order=5, dtype=F64),
    "degree 2": lambda: kk.KAN([2, 3, 1], spline_order=2, dtype=F64),
    "adaptive": adaptive,
    "pruned": pruned,
    "no base": lambda: kk.KAN([2, 3, 1], base_activation=None, dtype=F64),
    "identity": lambda: kk.KAN([2, 3, 1], base_activation=nn.Identity, dtype=F64),
    "tanh": lambda: kk.KAN([2, 3, 1], base_activation=nn.Tanh, dtype=F64),
    "softplus": lambda: kk.KAN([2, 3, 1], base_activation=nn.Softplus, dtype=F64),
    "no scaler": lambda: kk.KAN([2, 3, 1], enable_standalone_scale_spline=False, dtype=F64),
    "sequence": lambda: nn.Sequential(
        nn.Linear(2, 4), nn.Tanh(), kk.KANLinear(4, 3), nn.LayerNorm(3), nn.SiLU(), nn.Identity(), nn.Linear(3, 2)
    ).double(),
    "sigmoid": lambda: nn.Sequential(nn.Linear(2, 3, bias=False), nn.Sigmoid(), nn.GELU(), nn.Softplus()).double(),
    "eight inputs": lambda: kk.KAN([8, 3, 1], dtype=F64),
    "efficient-kan's": lambda: kk.accelerate(peer_layers.KAN([2, 5, 1]).double()),
    "efficient-kan's layer": lambda: kk.accelerate(peer_layers.KANLinear(2, 3).double()),
    "pykan's": lambda: kk.accelerate(network((2, 3, 1)).double()),
    "pykan's products": lambda: kk.accelerate(network((3, [2, 2], [1, 3], 2)).double()),
    "pykan's affine": lambda: kk.accelerate(affine(network((3, [2, 1], 2), affine_trainable=True)).double()),
    "pykan's masked": lambda: kk.accelerate(masked(network((2, 3, 1))).double()),
}


@pytest.fixture(params=NETWORKS)
def net(request):
    torch.manual_seed(0)
    return NETWORKS[request.param]()


def features(net):
    if hasattr(net, "width_in"):
        return net.width_in[0]
    return next(module.in_features for module in net.modules() if hasattr(module, "in_features"))


def inputs(net, rows=7):
    return torch.rand(rows, features(net), dtype=F64) * 1.9 - 0.95


def nested(net, x, directions, order):
    """Return the derivatives along the directions by nested backward passes: [direction][n - 1] (N, O)."""
    net, along = differentiable(net), []
    for direction in directions:

        def one(t, direction=direction):
            return net(x + t.view(-1, 1) * direction)

        t = torch.zeros(len(x), dtype=x.dtype, requires_grad=True)
        y = one(t)
        columns = []
        for o in range(y.shape[1]):
            value, of_output = y[:, o], []
            for _ in range(order):
                (value,) = torch.autograd.grad(value.sum(), t, create_graph=True)
                of_output.append(value)
            columns.append(torch.stack(of_output))
        along.append(torch.stack(columns, -1))
    return along


def test_laplacian(net):
    """Value, gradient and weighted Laplacian to 1e-10, and the gradients of a loss with all of them."""
    x = inputs(net)
    weights = [1.0, 0.5, -2.0, 0.0, 3.0, 1.0, 1.0, 1.0][: x.shape[1]]
    ours = kk.laplacian(net, x, weights)
    axes = nested(net, x, torch.eye(x.shape[1], dtype=F64), 2)
    theirs = (net(x), torch.stack([d[0] for d in axes], 1), sum(w * d[1] for w, d in zip(weights, axes, strict=True)))
    gradients = []
    parameters = [p for p in net.parameters() if p.requires_grad]
    for parts in (ours, theirs):
        loss = sum(part.square().sum() for part in parts)
        gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for a, b in zip(*gradients, strict=True):
        zeros = a if a is not None else b
        if zeros is not None:
            a, b = (torch.zeros_like(zeros) if g is None else g for g in (a, b))
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_directions_of_every_order(net):
    x = inputs(net)
    directions = torch.randn(2, x.shape[1], dtype=F64)
    ours = kk.derivatives(net, x, directions, order=4)
    torch.testing.assert_close(ours.value, net(x))
    for a, b in zip(ours.along, nested(net, x, directions, 4), strict=True):
        torch.testing.assert_close(torch.stack(a), b, rtol=1e-9, atol=1e-9)


def test_hessian(net):
    x = inputs(net, 3)
    rows = [
        torch.autograd.functional.hessian(lambda r, o=o: net(r.view(1, -1))[0, o], row)
        for row in x
        for o in range(net(x).shape[1])
    ]
    expected = torch.stack(rows).view(3, -1, x.shape[1], x.shape[1]).permute(0, 2, 3, 1)
    torch.testing.assert_close(kk.hessian(net, x), expected, rtol=1e-9, atol=1e-9)


def test_orders_per_direction_and_shapes():
    """u_t, u_x and u_xx of inputs (t, x), for any leading dimensions; order 0 has no derivatives."""
    net = kk.KAN([2, 5, 3], dtype=F64)
    x = torch.rand(2, 5, 2, dtype=F64)
    result = kk.derivatives(net, x, order=(1, 2))
    assert [len(of_axis) for of_axis in result.along] == [1, 2]
    whole = kk.derivatives(net, x.flatten(0, 1))
    torch.testing.assert_close(result.along[0][0], whole.along[0][0].view(2, 5, 3))
    torch.testing.assert_close(result.along[1][1], whole.along[1][1].view(2, 5, 3))
    assert kk.derivatives(net, x, order=0).along == ((), ())
    value, gradient, laplacian = kk.laplacian(net, x)
    assert (value.shape, gradient.shape, laplacian.shape) == ((2, 5, 3), (2, 5, 2, 3), (2, 5, 3))
    assert kk.hessian(net, x).shape == (2, 5, 2, 2, 3)
    row = kk.laplacian(net, x[0, 0])
    torch.testing.assert_close(row.laplacian, laplacian[0, 0])
    empty = kk.laplacian(net, x[:0])
    assert empty.gradient.shape == (0, 5, 2, 3)


def test_a_subset_of_axes_costs_only_its_channels():
    assert Layout((1, 2)).size == 4
    assert Layout((1, 1), (0.0, 1.0)).planes == ([1, 2, 3, 3], [1, 1, 1, 2])
    assert Layout((1, 1), (0.0, 0.0)).planes == ([1, 2, 3], [1, 1, 1])


def test_inputs_that_are_computed():
    """Fourier features: their derivatives start the channels."""
    net = kk.KAN([4, 5, 1], dtype=F64)
    s = torch.rand(7, 2, dtype=F64)

    def lift(s):
        return torch.cat([torch.sin(s), torch.cos(2 * s)], -1)

    class Lifted(nn.Module):
        def forward(self, s):
            return net(lift(s))

    axes = nested(Lifted(), s, torch.eye(2, dtype=F64), 3)
    jets = [torch.func.jvp(lift, (s,), (torch.eye(2, dtype=F64)[d].expand(7, 2),))[1] for d in range(2)]

    def power(s, d, n):
        f = lift
        for _ in range(n):
            f = (lambda g: lambda s: torch.func.jvp(g, (s,), (torch.eye(2, dtype=F64)[d].expand(7, 2),))[1])(f)
        return f(s)

    inner = [torch.stack([power(s, d, n) for d in range(2)]) for n in (1, 2, 3)]
    torch.testing.assert_close(inner[0], torch.stack(jets))
    ours = kk.derivatives(net, lift(s), order=3, inner=inner)
    for a, b in zip(ours.along, axes, strict=True):
        torch.testing.assert_close(torch.stack(a), b)
    weights = [1.0, 2.0]
    second = sum(w * d for w, d in zip(weights, inner[1], strict=True))
    result = kk.laplacian(net, lift(s), weights, inner=(inner[0], second))
    torch.testing.assert_close(result.laplacian, sum(w * d[1] for w, d in zip(weights, axes, strict=True)))


def test_gradients_of_gradients():
    """Closed under differentiation, with respect to x and the parameters."""
    net = kk.KAN([2, 2, 1], spline_order=5, grid_size=3, dtype=F64)
    x = (torch.rand(3, 2, dtype=F64) * 1.8 - 0.9).requires_grad_()
    parameters = dict(net.named_parameters())

    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return torch.cat([part.flatten() for part in kk.laplacian(self.net, x)])

    def call(x, *values):
        named = {f"net.{name}": value for name, value in zip(parameters, values, strict=True)}
        return torch.func.functional_call(Call(), named, (x,))

    torch.autograd.gradcheck(call, (x, *parameters.values()))
    torch.autograd.gradgradcheck(call, (x, *parameters.values()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by torch.compile itself
def test_transforms_compile_and_autocast():
    net = kk.KAN([2, 3, 1], dtype=F64)
    x = inputs(net)
    expected = kk.laplacian(net, x).laplacian
    by_row = torch.func.vmap(lambda row: kk.laplacian(net, row).laplacian)(x)
    torch.testing.assert_close(by_row, expected)
    jacobian = torch.func.jacrev(lambda x: kk.laplacian(net, x).laplacian.sum(0))(x)
    forward = torch.func.jacfwd(lambda x: kk.laplacian(net, x).laplacian.sum(0))(x)
    torch.testing.assert_close(jacobian, forward)
    compiled = torch.compile(lambda x: kk.laplacian(net, x).laplacian)
    torch.testing.assert_close(compiled(x), expected)
    small = copy.deepcopy(net).float()
    with torch.autocast("cpu", torch.bfloat16):
        low = kk.laplacian(small, x.float())
    assert low.laplacian.dtype is torch.bfloat16
    torch.testing.assert_close(low.value.float(), net(x).float(), rtol=0.05, atol=0.05)


def test_forward_mode():
    """Dual tensors without a transform: the tangent along a direction, against differences."""
    net = kk.KAN([2, 3, 1], spline_order=5, dtype=F64)
    x, v = inputs(net), torch.randn(7, 2, dtype=F64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        tangent = torch.autograd.forward_ad.unpack_dual(kk.laplacian(net, dual).laplacian).tangent
    h = 1e-5
    ahead, behind = (kk.laplacian(net, x + s * h * v).laplacian for s in (1, -1))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)


def test_where_a_derivative_jumps():
    """On knots, the side is that of the layer's own operators: the right one."""
    net = kk.KANLinear(1, 1, spline_order=2, grid_size=4, base_activation=None, dtype=F64)
    knots = net.grid[0, 2:-3].unsqueeze(1)
    second = kk.derivatives(net, knots).along[0][1]
    torch.testing.assert_close(second[:, 0], net.edge(0, 0).derivative(knots[:, 0], 2))


def test_registered_rules():
    """By derivatives, by a linear map, and by composition."""
    from kan_kernels.differential import rules

    net = nn.Sequential(kk.KANLinear(2, 3), Sin()).double()
    x = inputs(net)
    with pytest.raises(TypeError, match=r"got a test_differential.Sin; add one with kan_kernels.register_derivative_rule"):
        kk.laplacian(net, x)
    directions = torch.eye(2, dtype=F64)
    for rule in (
        lambda module, jet: jet.elementwise(lambda x, n: torch.sin(x + n * math.pi / 2)),
        lambda module, jet: jet.compose(module),
    ):
        kk.register_derivative_rule(Sin, rule)
        try:
            ours = kk.derivatives(net, x, order=4).along
        finally:
            del rules._rules[Sin]
        for a, b in zip(ours, nested(net, x, directions, 4), strict=True):
            torch.testing.assert_close(torch.stack(a), b, rtol=1e-9, atol=1e-9)


def test_networks_of_formulas():
    net = kk.KAN([2, 1, 1], dtype=F64)
    x = torch.rand(50, 2, dtype=F64) * 2 - 1
    found = net.symbolic(x, ["sin", "x^2", "exp"])
    ours = kk.laplacian(found, x[:5])
    axes = nested(found, x[:5], torch.eye(2, dtype=F64), 2)
    torch.testing.assert_close(ours.laplacian, axes[0][1] + axes[1][1])


def test_products_and_compositions_of_jets():
    """Leibniz' rule and curves, with a Laplacian channel beside directions of higher order."""
    layout = Layout((2, 3), (1.0, 0.5))
    x = torch.rand(5, 3, dtype=F64)
    jet = Jet(torch.cat([x.unsqueeze(0), torch.randn(layout.size - 1, 5, 3, dtype=F64)]), layout)
    square = jet.elementwise(lambda x, n: [x**2, 2 * x, 2 + 0 * x, 0 * x, 0 * x][n])
    torch.testing.assert_close((jet * jet).channels, square.channels)
    torch.testing.assert_close(jet.compose(torch.square).channels, square.channels)


class Doubled(kk.KAN):
    def forward(self, x, update_grid=False):
        return 2 * super().forward(x)


class Skipped(peer_layers.KAN):
    def forward(self, x, update_grid=False):
        return x[:, :1] + super().forward(x)


def hooked():
    net = kk.KAN([2, 1])
    net.layers[0].register_forward_hook(lambda *_: None)
    return net


def with_formulas():
    return kk.accelerate(symbolic(network((2, 3, 1))))


X = torch.rand(4, 2)
NET = kk.KAN([2, 3, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kk.laplacian(torch.sin, X), TypeError, "net: expected a torch.nn.Module, got builtin_function_or_method"),
        (lambda: kk.laplacian(NET, [1.0]), TypeError, "x: expected a torch.Tensor, got list"),
        (lambda: kk.laplacian(NET, X[:, :1]), ValueError, "x: expected 2 features"),
        (lambda: kk.laplacian(NET, torch.tensor(1.0)), ValueError, "x: expected at least one feature"),
        (lambda: kk.laplacian(NET, X.double()), TypeError, "x: expected float32"),
        (lambda: kk.laplacian(NET, X, 3), TypeError, "weights: expected a sequence of 2 numbers, got int"),
        (lambda: kk.laplacian(NET, X, [1.0]), ValueError, "weights: expected 2 numbers, got 1"),
        (lambda: kk.laplacian(NET, X, [1.0, math.nan]), ValueError, r"weights\[1\]: expected a finite number, got nan"),
        (
            lambda: kk.laplacian(NET, X, inner=X),
            TypeError,
            r"inner: expected two tensors, \(D, ..., F\) and \(..., F\), got Tensor",
        ),
        (lambda: kk.laplacian(NET, X, inner=(X, X)), ValueError, r"inner\[0\]: expected shape \(D, ..., F\)"),
        (lambda: kk.laplacian(NET, X, inner=(X[None], X[:1])), ValueError, r"inner\[1\]: expected the shape \(4, 2\) of x"),
        (lambda: kk.laplacian(NET, X, inner=(X[None].double(), X)), TypeError, r"inner\[0\]: expected torch.float32"),
        (lambda: kk.derivatives(NET, X, order=5), ValueError, "order: expected at most 4, got 5"),
        (lambda: kk.derivatives(NET, X, order=-1), ValueError, "order: expected at least 0, got -1"),
        (
            lambda: kk.derivatives(NET, X, order=(1, 2, 3)),
            ValueError,
            r"order: expected an int, or 2 ints, .* got \(1, 2, 3\)",
        ),
        (lambda: kk.derivatives(NET, X, order=(1, 1.5)), TypeError, r"order\[1\]: expected an int, got float"),
        (
            lambda: kk.derivatives(NET, X, X[:, :1]),
            ValueError,
            r"directions: expected shape \(D, F\) with F = 2, got \(4, 1\)",
        ),
        (lambda: kk.derivatives(NET, X, X.double()), TypeError, "directions: expected torch.float32, the dtype of x"),
        (lambda: kk.derivatives(NET, X, X, inner=[X[None]]), ValueError, "directions: expected None because inner is given"),
        (
            lambda: kk.derivatives(NET, X, inner=[]),
            ValueError,
            r"inner: expected tensors \(D, ..., F\) of one shape, got \[\]",
        ),
        (lambda: kk.hessian(Doubled([2, 1]), X), TypeError, "got a test_differential.Doubled"),
        (
            lambda: kk.laplacian(kk.accelerate(Skipped([2, 1])), X),
            TypeError,
            "whose forward applies its layers one after the other",
        ),
        (lambda: kk.laplacian(hooked(), X), ValueError, "net: expected modules without hooks"),
        (
            lambda: kk.laplacian(with_formulas(), X),
            ValueError,
            "net: expected a network without symbolic edges, got .* layer 0",
        ),
        (lambda: kk.laplacian(nn.Sequential(nn.ReLU()), X), TypeError, "got a torch.nn.modules.activation.ReLU"),
        (lambda: kk.laplacian(nn.LayerNorm((4, 2)), X), ValueError, "net: expected a LayerNorm over the last dimension"),
        (lambda: kk.register_derivative_rule(Sin(), None), TypeError, "module_class: expected a subclass of torch.nn.Module"),
        (lambda: kk.register_derivative_rule(Sin, 3), TypeError, "rule: expected a callable, got int"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
