"""The layer gives the same values under torch.func, vmap, forward mode, torch.compile and opcheck."""

import pytest
import torch
from cases import Case, make
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import kan_kernels as kk
from kan_kernels import ops


def make_boxed_func_of(backend):
    return lambda graph, inputs: make_boxed_func(backend(graph, inputs))


CASE = Case(7, 3, 5, scaled=True, knots="adaptive")


@pytest.fixture
def t():
    return make(CASE, torch.float64)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return kk.KAN([3, 5, 2], dtype=torch.float64)


def reference_of(function, *arguments):
    with kk.use_backend("reference"):
        return function(*arguments)


def close(value, expected):
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-11)


def test_grad_jacobian_hessian(net, t):
    """Reverse over reverse, forward over reverse and forward mode agree with the reference."""
    x = t.x[0]
    for transform in (grad, hessian, jacrev, jacfwd, lambda f: jacfwd(jacrev(f)), lambda f: jacrev(jacfwd(f))):
        function = transform(lambda v: net(v).square().sum())
        close(function(x), reference_of(function, x))


def test_jvp_in_everything(t):
    """The tangents of all arguments, together and one at a time, agree with the reference."""
    primals = (t.x, t.spline_weight, t.base_weight, t.spline_scaler)
    tangents = tuple(torch.randn_like(p) for p in primals)

    def function(x, spline_weight, base_weight, spline_scaler):
        return kk.kan_linear(x, spline_weight, t.grid, base_weight, spline_scaler=spline_scaler)

    value, tangent = jvp(function, primals, tangents)
    expected_value, expected_tangent = reference_of(jvp, function, primals, tangents)
    close(value, expected_value)
    close(tangent, expected_tangent)
    for k in range(4):
        alone = tuple(v if j == k else torch.zeros_like(v) for j, v in enumerate(tangents))
        close(jvp(function, primals, alone)[1], reference_of(jvp, function, primals, alone)[1])


@pytest.mark.parametrize("in_dims", [(0, None), (1, None), (None, 0), (None, 2), (0, 0)], ids=str)
def test_vmap(t, in_dims):
    """vmap of inputs, parameters or both along any dimension equals a loop."""
    x = torch.randn(4, 7, 3, dtype=torch.float64) if in_dims[0] is not None else t.x
    spline_weight = torch.randn(4, *t.spline_weight.shape, dtype=torch.float64) if in_dims[1] is not None else t.spline_weight
    x = x if in_dims[0] is None else x.movedim(0, in_dims[0])
    spline_weight = spline_weight if in_dims[1] is None else spline_weight.movedim(0, in_dims[1])

    def function(x, spline_weight):
        return kk.kan_linear(x, spline_weight, t.grid, t.base_weight, spline_scaler=t.spline_scaler)

    batched = vmap(function, in_dims=in_dims)
    expected = torch.stack(
        [
            function(
                x if in_dims[0] is None else x.select(in_dims[0], k),
                spline_weight if in_dims[1] is None else spline_weight.select(in_dims[1], k),
            )
            for k in range(4)
        ]
    )
    close(batched(x, spline_weight), expected)


def test_per_sample_gradients(net, t):
    """vmap(grad) over samples equals a loop, for gradients of the parameters and of the inputs."""
    parameters = dict(net.named_parameters())

    def loss(parameters, x):
        return functional_call(net, parameters, (x.unsqueeze(0),)).square().sum()

    for argument in (0, 1):
        per_sample = vmap(grad(loss, argnums=argument), in_dims=(None, 0))(parameters, t.x)
        for k in range(len(t.x)):
            alone = grad(loss, argnums=argument)(parameters, t.x[k])
            if argument == 1:
                close(per_sample[k], alone)
            else:
                for name, value in alone.items():
                    close(per_sample[name][k], value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_per_sample_gradients_are_as_accurate_as_single_ones(dtype):
    layer = kk.KANLinear(8, 32, grid_size=50).to(dtype)
    parameters = {"spline_weight": layer.spline_weight.detach(), "spline_scaler": layer.spline_scaler.detach()}
    x = torch.rand(5, 8).to(dtype)

    def loss(parameters, x):
        return functional_call(layer, parameters, (x.unsqueeze(0),)).float().square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for k in range(5):
        for name, value in grad(loss)(parameters, x[k]).items():
            assert (together[name][k] - value).float().norm() <= 2 * torch.finfo(dtype).eps * value.float().norm()
    none = vmap(grad(loss), in_dims=(None, 0))(parameters, x[:0])
    assert none["spline_weight"].shape == (0, *layer.spline_weight.shape)


NESTED = {
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f)),
    "jacfwd of hessian": lambda f: jacfwd(hessian(f)),
    "jacrev of jacfwd of jacfwd": lambda f: jacrev(jacfwd(jacfwd(f))),
    "jvp of jvp": lambda f: lambda x: jvp(lambda y: jvp(f, (y,), (x,))[1], (x,), (torch.ones_like(x),))[1],
    "forward Laplacian of a batch": lambda f: lambda x: vmap(jacfwd(jacfwd(f)))(torch.stack([x, 2 * x])),
}


@pytest.mark.parametrize("order", NESTED)
def test_nested_forward_mode(net, t, order):
    """A torch.autograd.Function with a jvp would silently return zeros here."""
    function = NESTED[order](lambda x: net(x).square().sum())
    value = function(t.x[0])
    assert value.abs().max() > 1e-3
    close(value, reference_of(function, t.x[0]))


def test_nested_forward_mode_in_parameters(net, t):
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def mixed(spline_weight, spline_scaler):
        changed = parameters | {"layers.0.spline_weight": spline_weight, "layers.0.spline_scaler": spline_scaler}
        return functional_call(net, changed, (t.x,)).square().sum()

    function = jacfwd(jacfwd(mixed, 0), 1)
    arguments = parameters["layers.0.spline_weight"], parameters["layers.0.spline_scaler"]
    assert function(*arguments).abs().max() > 1e-3
    close(function(*arguments), reference_of(function, *arguments))


@pytest.mark.filterwarnings("ignore")
def test_transforms_inside_of_compiled_code(net, t):
    """Compiled transforms run on the operators, and compiled forward mode runs on the reference."""
    torch.use_deterministic_algorithms(False)
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    operators = []

    def backend(graph, inputs):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    def loss(parameters, x):
        return functional_call(net, parameters, (x.unsqueeze(0),)).square().sum()

    for function, x in ((grad(loss), t.x[0]), (vmap(grad(loss), in_dims=(None, 0)), t.x)):
        for kind in ("aot_eager", aot_autograd(fw_compiler=make_boxed_func_of(backend))):
            compiled = torch.compile(function, backend=kind, fullgraph=True)(parameters, x)
            for name, value in function(parameters, x).items():
                close(compiled[name], value)
    assert {name for name in operators if "kan_kernels" in name} == {
        "kan_kernels.spline_forward.default",
        "kan_kernels.spline_backward_input.default",
        "kan_kernels.spline_backward_weight.default",
    }
    torch.compiler.reset()
    for function in (lambda x: jvp(net, (x,), (torch.ones_like(x),))[1], jacfwd(net)):
        close(torch.compile(function, backend="aot_eager", fullgraph=True)(t.x), function(t.x))


def test_vmap_of_hessian(net, t):
    """vmap of second derivatives equals a loop."""
    value = vmap(hessian(lambda x: net(x).sum()))(t.x)
    for k in range(len(t.x)):
        close(value[k], hessian(lambda x: net(x).sum())(t.x[k]))


def test_vmap_over_an_ensemble(net, t):
    """vmap of functional_call with stacked parameters equals the single nets."""
    nets = [kk.KAN([3, 5, 2], dtype=torch.float64) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(nets)
    together = vmap(lambda p, b: functional_call(net, (p, b), (t.x,)))(parameters, buffers)
    for k, member in enumerate(nets):
        close(together[k], member(t.x))


def test_compile(net):
    """A net compiled with fullgraph gives the eager values and gradients for two batch sizes."""
    torch.use_deterministic_algorithms(False)
    compiled = torch.compile(net, fullgraph=True)
    for rows in (7, 33):
        x = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)
        values = [x, *net.parameters()]
        y = compiled(x)
        expected = net(x)
        close(y, expected)
        for value, truth in zip(
            torch.autograd.grad(y.sum(), values), torch.autograd.grad(expected.sum(), values), strict=True
        ):
            close(value, truth)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_opcheck(weighted):
    """opcheck tests the operators' schemas, fake tensors, autograd and tracing."""
    t = make(Case(7, 3, 5, scaled=True, weighted=weighted), torch.float32)
    base = t.base_weight if weighted else None
    torch.library.opcheck(ops.spline_forward, (t.x, t.w, t.spline_weight, t.spline_scaler, t.grid, base, "silu", 1))
    torch.library.opcheck(ops.spline_backward_input, (t.x, t.g, t.spline_weight, None, t.grid, base, "identity", 0))
    for needs in [(True, True, True), (False, True, False), (True, False, False)]:
        arguments = (t.x, t.w, t.g, t.spline_weight, t.spline_scaler, t.grid, 3, "silu", 0, *needs)
        torch.library.opcheck(ops.spline_backward_weight, arguments)
        torch.library.opcheck(
            ops.spline_backward, (t.x, t.w, t.g, t.spline_weight, t.spline_scaler, t.grid, base, "silu", 0, *needs)
        )
    edges = (t.x, t.spline_weight, t.spline_scaler, t.grid, base, "silu")
    torch.library.opcheck(ops.edge_l1, edges)
    torch.library.opcheck(ops.edge_l1_backward, (*edges, torch.rand(5, 3), True, True, True, weighted))
    moments = ops.basis_moments(t.x, t.grid, 3, "silu")
    torch.library.opcheck(ops.basis_moments, (t.x, t.grid, 3, "silu"))
    torch.library.opcheck(ops.basis_moments_backward, (t.x, t.grid, 3, "silu", moments))
    torch.library.opcheck(ops.edge_std, (moments, t.spline_weight, t.spline_scaler, base, 7))
    torch.library.opcheck(
        ops.edge_std_backward,
        (moments, t.spline_weight, t.spline_scaler, base, 7, torch.rand(5, 3), True, True, True, weighted),
    )


@pytest.mark.filterwarnings("ignore:Attempted to insert")  # by torch.func.linearize
def test_batched_tangents_and_gradients(net, t):
    _, tangent = torch.func.linearize(net, t.x)
    directions = torch.randn(4, *t.x.shape, dtype=torch.float64)
    close(vmap(tangent)(directions), torch.stack([tangent(d) for d in directions]))
    y = net(t.x.requires_grad_())
    wanted = [t.x, *net.parameters()]
    many = torch.randn(4, *y.shape, dtype=torch.float64)
    together = torch.autograd.grad(y, wanted, many, is_grads_batched=True, retain_graph=True)
    for k in range(4):
        for own, alone in zip(together, torch.autograd.grad(y, wanted, many[k], retain_graph=True), strict=True):
            close(own[k], alone)


@pytest.mark.parametrize("ord", ["l1", "std"])
def test_edge_norms(net, t, ord):
    """vmap of norms equals a loop, and their gradients, tangents and second derivatives agree with the reference."""
    layer = net.layers[0]
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def norms(x, parameters):
        spline_weight, base, spline_scaler = (parameters[name] for name in ("spline_weight", "base_weight", "spline_scaler"))
        return kk.edge_norms(x, spline_weight, layer.grid, base, ord, spline_scaler=spline_scaler)

    many = torch.randn(4, 9, 3, dtype=torch.float64)
    close(vmap(norms, in_dims=(0, None))(many, parameters), torch.stack([norms(x, parameters) for x in many]))
    several = {name: torch.stack([p, 2 * p, -p]) for name, p in parameters.items()}
    close(
        vmap(norms, in_dims=(None, 0))(t.x, several),
        torch.stack([norms(t.x, {name: p[k] for name, p in several.items()}) for k in range(3)]),
    )
    for transform in (grad, jacfwd, hessian, lambda f: vmap(grad(f))):
        x = torch.stack([t.x, 0.5 * t.x]) if transform not in (grad, jacfwd, hessian) else t.x
        function = transform(lambda x: norms(x, parameters).square().sum())
        torch.testing.assert_close(function(x), reference_of(function, x), rtol=1e-8, atol=1e-9)
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    function = lambda p: norms(t.x, p)  # noqa: E731
    torch.testing.assert_close(
        jvp(function, (parameters,), (tangents,))[1], reference_of(jvp, function, (parameters,), (tangents,))[1]
    )


def test_a_tensor_that_outlived_its_transform(net, t):
    """A tensor that leaks out of torch.func.grad is an ordinary tensor afterwards."""
    leaked = []
    grad(lambda x: (leaked.append(x), net(x).sum())[1])(t.x)
    close(net(leaked[0]), net(t.x))


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0)], ids=str)
def test_vmap_over_nothing(t, in_dims):
    """An empty batch gives an empty batch of results and of gradients."""
    x = torch.zeros(0, *t.x.shape, dtype=torch.float64) if in_dims[0] == 0 else t.x
    spline_weight = torch.zeros(0, *t.spline_weight.shape, dtype=torch.float64) if in_dims[1] == 0 else t.spline_weight

    def function(x, spline_weight):
        return kk.kan_linear(x, spline_weight, t.grid, t.base_weight)

    assert vmap(function, in_dims=in_dims)(x, spline_weight).shape == (0, 7, 5)
    assert vmap(kk.KANLinear(4, 3))(torch.rand(0, 4)).shape == (0, 3)
    for argnum, like in ((0, t.x), (1, t.spline_weight)):
        gradient = vmap(grad(lambda x, spline_weight: function(x, spline_weight).sum(), argnums=argnum), in_dims=in_dims)(
            x, spline_weight
        )
        assert gradient.shape == (0, *like.shape)


def test_forward_mode_without_gradients(t):
    """A call under no_grad does not use an autograd Function, unless an argument is a dual tensor."""
    direction = torch.randn_like(t.x)
    _, expected = jvp(lambda x: kk.kan_linear(x, t.spline_weight, t.grid, t.base_weight), (t.x,), (direction,))
    with torch.no_grad(), forward_ad.dual_level():
        y = kk.kan_linear(forward_ad.make_dual(t.x, direction), t.spline_weight, t.grid, t.base_weight)
        tangent = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, expected)
    recorded = kk.kan_linear(t.x.detach().requires_grad_(), t.spline_weight, t.grid, t.base_weight)
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            plain = kk.kan_linear(t.x.detach().requires_grad_(), t.spline_weight, t.grid, t.base_weight)
        assert not plain.requires_grad
        assert torch.equal(plain, recorded)


BAD = {
    "features": (lambda: torch.zeros(4, 2).double(), ValueError, r"x: expected 3 features in the last .*got shape \(4, 2\)"),
    "integers": (lambda: torch.zeros(4, 3).long(), TypeError, "x: expected a floating-point dtype .* got int64"),
    "another dtype": (
        lambda: torch.zeros(4, 3),
        TypeError,
        r"x: expected float64, the dtype of the layer's parameters, got float32; use layer\.float\(\) or x\.double\(\)",
    ),
}
WAYS = {
    "compile": lambda net, x: torch.compile(net, backend="aot_eager")(x),
    "compile, fullgraph": lambda net, x: torch.compile(net, backend="aot_eager", fullgraph=True)(x),
    "compile, dynamic": lambda net, x: torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=True)(x),
    "vmap": lambda net, x: vmap(net)(x.expand(2, *x.shape)),
    "jacrev": lambda net, x: jacrev(lambda y: net(x))(torch.zeros(3)),
    "export": lambda net, x: torch.export.export(net, (x,), strict=True),
    "export, not strict": lambda net, x: torch.export.export(net, (x,), strict=False),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", BAD)
def test_errors_keep_their_types_and_messages(net, way, bad):
    make, error, message = BAD[bad]
    torch.compiler.reset()
    with pytest.raises(error, match=message):
        net(make())
    with pytest.raises(error, match=message):
        WAYS[way](net, make())


@pytest.mark.parametrize("vectorize", [False, True])
def test_forward_over_reverse_without_levels(net, t, vectorize):
    """The gradient with respect to a dual tensor has a tangent."""
    direction = torch.randn_like(t.x)

    def gradient_and_tangent():
        x = t.x.clone().requires_grad_()
        with forward_ad.dual_level():
            (gradient,) = torch.autograd.grad(net(forward_ad.make_dual(x, direction)).sum(), x, create_graph=True)
            return forward_ad.unpack_dual(gradient)

    def hessian_of(x):
        options = {"outer_jacobian_strategy": "forward-mode", "vectorize": True} if vectorize else {}
        return torch.autograd.functional.hessian(lambda x: net(x).sum(), x, **options)

    close(hessian_of(t.x), reference_of(hessian_of, t.x))
    (expected,) = torch.autograd.functional.hvp(lambda x: net(x).sum(), t.x, direction)[1:]
    close(gradient_and_tangent().tangent, expected)
    close(gradient_and_tangent().primal, grad(lambda x: net(x).sum())(t.x))


def test_tangents_that_do_not_matter(t):
    """The Hessian of a linear loss and the tangents of the knots are zero."""

    def linear(spline_weight, base_weight):
        return kk.kan_linear(t.x, spline_weight, t.grid, base_weight).sum()

    second = hessian(linear, (0, 1))(t.spline_weight, t.base_weight)
    assert not any(part.any() for row in second for part in row)
    assert not jvp(lambda grid: kk.kan_linear(t.x, t.spline_weight, grid, t.base_weight), (t.grid,), (t.grid,))[1].any()


@pytest.mark.filterwarnings("ignore:Attempted to insert")
@pytest.mark.parametrize("ord", ["l1", "std"])
def test_linearized_norms(t, ord):
    for k in range(2):

        def norms(value, k=k):
            x, spline_weight = (value, t.spline_weight) if k == 0 else (t.x, value)
            return kk.edge_norms(x, spline_weight, t.grid, t.base_weight, ord)

        at = (t.x, t.spline_weight)[k]
        tangent = jvp(norms, (at,), (at.cos(),))[1]
        assert tangent.abs().max() > 1e-3
        close(torch.func.linearize(norms, at)[1](at.cos()), tangent)
    gradient = grad(lambda x, spline_weight: kk.edge_norms(x, spline_weight, t.grid, t.base_weight, ord).sin().sum())
    several = torch.stack([t.spline_weight, 0.5 * t.spline_weight])
    close(
        vmap(gradient, in_dims=(None, 0))(t.x, several),
        torch.stack([gradient(t.x, spline_weight) for spline_weight in several]),
    )


@pytest.mark.filterwarnings("ignore")
def test_compiled_autograd(net, t):
    torch.use_deterministic_algorithms(False)
    net(t.x).square().sum().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    y = net(t.x)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        y.square().sum().backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        close(parameter.grad, gradient)
