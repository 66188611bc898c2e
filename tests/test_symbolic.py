"""`kk.symbolic.suggest` and `KAN.symbolic`: exact laws, pykan's choice, formulas, and bad input."""

import copy
import io
import math
import pickle
import sys

import numpy as np
import pytest
import sympy
import torch

import kan_kernels as kk
from kan_kernels.symbolic import LIBRARY, Function, SymbolicKAN, affine_fit, suggest
from kan_kernels.symbolic.library import normalized

X = torch.linspace(-1, 1, 129, dtype=torch.float64)
LAWS = {
    "sin": (1.5, lambda x: 1.5 * torch.sin(3.2 * x + 0.7) - 0.3, {"a": 3.2, "b": 0.7, "c": 1.5, "d": -0.3}),
    "x^2": (2.0, lambda x: 2 * (x - 0.3) ** 2 + 1, {"a": 1, "b": -0.3, "c": 2, "d": 1}),
    "x^3": (1.0, lambda x: 0.7 * (x + 0.4) ** 3, {"a": 1, "b": 0.4, "c": 0.7, "d": 0}),
    "1/x": (1.0, lambda x: 0.7 / (x + 1.4), {"a": 1, "b": 1.4, "c": 0.7, "d": 0}),
    "sqrt": (1.0, lambda x: torch.sqrt(x + 1.25), {"a": 1, "b": 1.25, "c": 1, "d": 0}),
    "exp": (1.0, lambda x: 0.7 * torch.exp(1.3 * x), {"a": 1.3, "b": 0, "c": 0.7, "d": 0}),
    "log": (1.0, lambda x: torch.log(x + 1.5), {"a": 1, "b": 1.5, "c": 1, "d": 0}),
    "tanh": (1.0, lambda x: torch.tanh(3 * x + 1), {"a": 3, "b": 1, "c": 1, "d": 0}),
    "gaussian": (1.0, lambda x: torch.exp(-((2 * x - 0.5) ** 2)), {"a": 2, "b": -0.5, "c": 1, "d": 0}),
    "arctan": (1.0, lambda x: torch.arctan(4 * x - 1), {"a": 4, "b": -1, "c": 1, "d": 0}),
}


@pytest.mark.parametrize("name", LAWS)
def test_exact_laws_come_out(name):
    """The function is found without a preference for simplicity, 1 - r2 < 1e-12, and the constants have six digits."""
    _, law, expected = LAWS[name]
    best = suggest(X, law(X), weight_simple=0.0)[0]
    if name in ("sin", "cos"):
        assert best.name == "sin"
    assert best.name == name
    assert 1 - best.r2 < 1e-12
    for letter, value in expected.items():
        assert getattr(best, letter) == pytest.approx(value, rel=1e-6, abs=1e-6), letter
    torch.testing.assert_close(best(X), law(X), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e9])
def test_values_of_any_size(size):
    """The rule of the search is for values of order 1; the curve is scaled to that."""
    best = suggest(X, size * (torch.sin(3 * X + 0.5) + 2))[0]
    assert best.name == "sin"
    assert best.c == pytest.approx(size, rel=1e-6)
    assert best.d == pytest.approx(2 * size, rel=1e-6)


def test_a_law_outside_of_the_ranges_is_refined():
    """The search ends at a = 10; Gauss-Newton steps go on from there."""
    y = torch.sin(10.2 * X + 0.3)
    best = next(candidate for candidate in suggest(X, y, ["sin", "x"]) if candidate.name == "sin")
    assert best.a == pytest.approx(10.2, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in LIBRARY if name != "0"])
def test_normalized_parameters_describe_the_same_curve(name):
    function = LIBRARY[name]
    z = torch.linspace(0.1, 0.9, 17, dtype=torch.float64)
    for a in (0.7, -0.7):
        parameters = (a, 0.05 if a > 0 else 0.75, -1.3, 0.2)
        new = normalized(function, *parameters)
        before, after = (c * function.function(a * z + b) + d for a, b, c, d in (parameters, new))
        torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_expressions_of_the_library_are_its_functions():
    """SymPy evaluates each expression to the function's value, and the names and complexities are pykan's."""
    from kan.utils import SYMBOLIC_LIB

    symbol = sympy.Symbol("z")
    points = np.array([0.1, 0.37, 0.83])
    for name, function in LIBRARY.items():
        values = sympy.lambdify(symbol, function.expression(symbol), "numpy")(points) * np.ones(3)
        np.testing.assert_allclose(values, function.function(torch.from_numpy(points)).numpy(), rtol=1e-14)
        assert function.complexity == SYMBOLIC_LIB[name][2], name
    assert set(LIBRARY) == set(SYMBOLIC_LIB) - {"x^0.5", "1/x^0.5"}


def test_the_order_is_pykans_rule():
    """For every function: pykan's search, its loss, and the order of NumPy's sort of it."""
    y = torch.tanh(2 * X) + 0.2 * X
    found = suggest(X, y)
    losses = []
    for function in LIBRARY.values():
        r2 = 0.0 if function.name == "0" else float(affine_fit(X, y, function.function, dtype=torch.float64).r2)
        losses.append(0.8 * function.complexity + 0.2 * np.log2(1 + 1e-5 - r2))
    for candidate in found:
        assert candidate.loss == pytest.approx(losses[list(LIBRARY).index(candidate.name)], rel=1e-3, abs=1e-6)
    names = [candidate.name for candidate in found]
    assert names.index("sin") + 1 == names.index("cos"), "they tie, and keep the order of the library"
    assert names[0] == list(LIBRARY)[int(np.argmin(losses))]


def test_r2_is_that_of_the_parameters():
    y = torch.sin(3 * X) + 0.1 * torch.cos(20 * X)
    for candidate in suggest(X, y):
        residual = y - candidate(X)
        r2 = 1 - float(residual.square().sum() / (y - y.mean()).square().sum())
        assert candidate.r2 == pytest.approx(r2, abs=1e-9), candidate


def test_functions_of_the_user():
    """A callable, one that autograd does not record, and a name of the library."""
    y = 2 * torch.special.erf(3 * X + 0.5) - 1
    steps = Function("steps", lambda z: torch.round(z.detach()), complexity=5)
    erf = Function("erf", torch.special.erf, sympy.erf, complexity=2)
    found = suggest(X, y, [erf, "x", steps])
    assert found[0].function is erf
    assert abs(found[0].a) == pytest.approx(3, rel=1e-6)
    assert {candidate.name for candidate in found} == {"erf", "x", "steps"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_computation_is_in_float64(dtype):
    x = X.to(dtype)
    y = (2 * (x.double() - 0.25) ** 2).to(dtype)
    assert suggest(x, y, ["x^2"]) == suggest(x.double(), y.double(), ["x^2"])


def test_in_inference_mode_and_functions_without_a_fit():
    with torch.inference_mode():
        best = suggest(1 * X, torch.sin(3 * X), ["sin"])[0]
    assert best.r2 == pytest.approx(1, abs=1e-12)
    for function in (lambda z: z * math.nan, lambda z: 0 * z + 1):
        (candidate,) = suggest(X, torch.sin(3 * X), [Function("f", function)])
        assert candidate.r2 == pytest.approx(0, abs=1e-12)
        assert candidate.c == 0


def curve(x=X, y=None, **options):
    return suggest(x, torch.sin(3 * X) if y is None else y, **options)


NAN = torch.where(X == 0, math.nan, X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: curve(x=[1.0]), TypeError, "x: expected a torch.Tensor, got list"),
        (lambda: curve(y=X.long()), TypeError, "y: expected a floating-point dtype"),
        (lambda: curve(x=X[:1], y=X[:1]), ValueError, r"x and y: expected two tensors \(N,\), N >= 2, got shapes \(1,\)"),
        (lambda: curve(x=X.view(-1, 1)), ValueError, r"got shapes \(129, 1\) and \(129,\)"),
        (lambda: curve(x=NAN), ValueError, "x: expected finite values, got a NaN or an infinity"),
        (lambda: curve(y=NAN), ValueError, "y: expected finite values, got a NaN or an infinity"),
        (lambda: curve(y=0 * X + 2), ValueError, "y: expected values that differ, got 2 in all samples"),
        (lambda: curve(x=0 * X + 3), ValueError, "x: expected values that differ, got 3 in all samples"),
        (lambda: curve(lib=[]), ValueError, "lib: expected at least one function, got none"),
        (lambda: curve(lib=["sine"]), ValueError, r"lib\[0\]: expected a Function or one of 0, x, .* got 'sine'"),
        (lambda: curve(lib="sin"), TypeError, "lib: expected a sequence of names and Functions, got str"),
        (lambda: curve(lib=[torch.sin]), TypeError, r"lib\[0\]: expected a name or a Function"),
        (lambda: curve(lib=[Function("f", 3)]), TypeError, r"lib\[0\]: expected a Function of a string and a callable"),
        (
            lambda: curve(lib=[Function("f", torch.sin, complexity=-1)]),
            ValueError,
            "expected a finite complexity >= 0, got -1",
        ),
        (lambda: curve(lib=["sin", Function("sin", torch.sin)]), ValueError, r"lib\[1\]: expected a new name, got 'sin'"),
        (
            lambda: curve(lib=[Function("f", lambda z: z.sum())]),
            ValueError,
            "lib: expected an elementwise function 'f', got shape",
        ),
        (
            lambda: curve(lib=[Function("f", lambda z: z.long())]),
            TypeError,
            "lib: expected a function 'f' that returns .* torch.int64",
        ),
        (
            lambda: curve(lib=[Function("f", lambda z: None)]),
            TypeError,
            "lib: expected a function 'f' that returns .* NoneType",
        ),
        (lambda: curve(a_range=3), TypeError, r"a_range: expected two numbers \(low, high\), got 3"),
        (lambda: curve(b_range=(1, 1)), ValueError, r"b_range: expected low < high, got \(1, 1\)"),
        (lambda: curve(a_range=(0, math.inf)), ValueError, r"a_range\[1\]: expected a finite number"),
        (lambda: curve(weight_simple=2), ValueError, r"weight_simple: expected a finite number in \[0.0, 1.0\], got 2"),
    ],
)
def test_bad_input_of_suggest(call, error, message):
    with pytest.raises(error, match=message):
        call()


def network_of(laws, dtype=torch.float64):
    """A network [2, 1, 1] whose edges are fitted to three functions, and inputs."""
    torch.manual_seed(0)
    net = kk.KAN([2, 1, 1], grid_size=20, base_activation=None, grid_range=[(-1, 1), (-1.5, 2.5)], dtype=dtype)
    x = torch.rand(400, 2, dtype=dtype) * 2 - 1
    with torch.no_grad():
        for layer, functions, points in zip(net.layers, laws, (x, None), strict=True):
            if points is None:
                points = torch.linspace(-1.5, 2.5, 400, dtype=dtype).unsqueeze(1)
            values = torch.stack([f(points[:, i]) for i, f in enumerate(functions)], 1).unsqueeze(2)
            layer.spline_weight.copy_(layer.curve2coeff(points, values))
            layer.spline_scaler.fill_(1)
    return net, x


PAPER = ((lambda x: torch.sin(torch.pi * x), lambda y: y**2), (torch.exp,))


@pytest.fixture(scope="module")
def paper():
    """The network of exp(sin(pi x) + y^2), its inputs, and the functions found."""
    net, x = network_of(PAPER)
    return net, x, net.symbolic(x)


def test_the_papers_formula(paper):
    """The functions and constants are found, and training finds the constants again from a distance."""
    _, x, found = paper
    assert found.functions == {(0, 0, 0): "sin", (0, 0, 1): "x^2", (1, 0, 0): "exp"}
    y = torch.exp(torch.sin(torch.pi * x[:, :1]) + x[:, 1:] ** 2)
    trained = copy.deepcopy(found)
    optimizer = torch.optim.LBFGS(
        trained.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-15
    )

    def closure():
        optimizer.zero_grad()
        loss = (trained(x) - y).square().mean()
        loss.backward()
        return loss

    assert closure().item() < 1e-10
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.02)
    assert closure().item() > 1e-4
    optimizer.step(closure)
    assert closure().item() < 1e-10
    expression = trained.formula(["x", "y"])[0]
    value = sympy.lambdify(sympy.symbols("x y"), expression, "numpy")(*x.T.numpy())
    np.testing.assert_allclose(value, trained(x).detach()[:, 0].numpy(), rtol=1e-10)
    np.testing.assert_allclose(value, y[:, 0].numpy(), rtol=1e-4)


def test_the_functions_are_those_of_suggest(paper):
    net, x, found = paper
    edges = found.report()
    inputs = [x, net.layers[0](x).detach()]
    for edge in edges:
        points = inputs[edge.layer][:, edge.in_feature]
        values = net.layers[edge.layer].edge(edge.out_feature, edge.in_feature)(points).detach()
        assert edge.candidates == suggest(points, values)
        assert edge.function == edge.candidates[0].name


def test_pykans_choice(float64_in_a_directory_of_its_own):
    """pykan's `auto_symbolic` fixes the same functions for the converted network."""
    from test_formulas import quietly

    net, x = network_of(PAPER)
    lib = ["x", "x^2", "exp", "sin", "0", "tanh", "sqrt"]
    theirs = net.to_pykan()
    theirs(x)
    quietly(theirs.auto_symbolic, lib=lib)
    ours = net.symbolic(x, lib)
    for (level, o, i), name in ours.functions.items():
        assert theirs.symbolic_fun[level].funs_name[o][i] == name


def test_the_network_does_not_change(paper):
    net, x, _ = paper
    before = copy.deepcopy(net.state_dict())
    net.symbolic(x, ["x", "sin"])
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
        assert not value.requires_grad


def test_the_report(paper):
    text = str(paper[2].report())
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "out", "in", "function", "r2", "alternatives", "(r2)"]
    assert len(lines) == 4
    assert lines[1].startswith("0      0    0   sin")
    assert "cos (" in lines[1]


def test_masked_edges_and_splines():
    """A masked edge has no function; an edge below r2_threshold stays a spline, with the same values."""
    net, x = network_of(
        ((lambda x: torch.sin(torch.pi * x), lambda y: torch.sign(y) * y**2 + 0.4 * torch.sin(9 * y)), (torch.exp,))
    )
    net.layers[0].edge_mask = torch.ones(1, 2, dtype=torch.float64)
    found = net.symbolic(x, ["x", "x^2", "sin", "exp"], r2_threshold=0.99)
    assert found.functions == {(0, 0, 0): "sin", (1, 0, 0): "exp"}
    layer = found.layers[0]
    spline = net.layers[0].edge(0, 1)(x[:, 1].contiguous())
    torch.testing.assert_close(layer.spline(x)[:, 0], spline)
    torch.testing.assert_close(layer(x), net.layers[0](x), rtol=0, atol=1e-3)
    with pytest.raises(
        ValueError, match=r"formula: expected a function for every edge, got splines at .* = \(0, 0, 1\); prune"
    ):
        found.formula()
    assert "(spline)" in str(found.report())

    net.layers[0].edge_mask[0, 1] = 0
    found = net.symbolic(x, ["x", "x^2", "sin", "exp"])
    assert set(found.functions) == {(0, 0, 0), (1, 0, 0)}
    assert found.layers[0].spline is None
    assert found.formula()[0].free_symbols == {sympy.Symbol("x_0")}


def test_formula_digits_names_and_own_functions():
    net, x = network_of(PAPER)
    own = Function("erf", torch.special.erf)
    found = net.symbolic(x, [own])
    (expression,) = found.formula(("u", "v"), digits=3)
    assert {str(symbol) for symbol in expression.free_symbols} == {"u", "v"}
    assert "erf(" in str(expression)
    numbers = [(str(number), float(number)) for number in expression.atoms(sympy.Float)]
    assert all(float(text) == float(f"{value:.3g}") for text, value in numbers), numbers


@pytest.mark.parametrize("shape", [(2,), (7, 2), (2, 3, 2)])
def test_forward_takes_any_batch(paper, shape):
    """Equivalent torch, edge by edge."""
    found = paper[2]
    x = torch.rand(shape, dtype=torch.float64) * 2 - 1
    expected = x
    for layer in found.layers:
        a, b, c, d = layer.affine.unbind(-1)
        outputs = []
        for o in range(layer.affine.shape[0]):
            of_edges = [
                c[o, i] * layer.function(o, i).function(a[o, i] * expected[..., i] + b[o, i]) + d[o, i]
                for i in range(layer.affine.shape[1])
            ]
            outputs.append(sum(of_edges))
        expected = torch.stack(outputs, -1)
    torch.testing.assert_close(found(x), expected)


def test_gradients(paper):
    found = copy.deepcopy(paper[2])
    x = (torch.rand(3, 2, dtype=torch.float64) - 0.5).requires_grad_()
    parameters = dict(found.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(found, dict(zip(parameters, values, strict=True)), (x,))

    torch.autograd.gradcheck(call, (x, *parameters.values()))


def test_life_of_a_module(paper, tmp_path):
    """Copies, pickles, state dicts, casts and repr."""
    found, x = paper[2], paper[1]
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert torch.equal(other(x), found(x))
        assert other.functions == found.functions
        assert other.report()[0].candidates[0].function is LIBRARY["sin"]
        other.load_state_dict(found.state_dict())
    assert set(found.state_dict()) == {"layers.0.affine", "layers.1.affine"}
    assert found.float()(x.float()).dtype is torch.float32
    found.double()
    assert "in_features=2, out_features=1" in repr(found)
    torch.testing.assert_close(torch.compile(copy.deepcopy(found), fullgraph=True)(x), found(x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net, x: net.symbolic(x[:1]), ValueError, "x: expected at least 2 rows"),
        (lambda net, x: net.symbolic(x[:, :1]), ValueError, "x: expected 2 features"),
        (lambda net, x: net.symbolic(x.float()), TypeError, "x: expected float64, the dtype of the layer's parameters"),
        (lambda net, x: net.symbolic(x * math.nan), ValueError, "x: expected finite inputs"),
        (lambda net, x: net.symbolic(x, []), ValueError, "lib: expected at least one function"),
        (lambda net, x: net.symbolic(x, ["nope"]), ValueError, r"lib\[0\]: expected a Function or one of"),
        (lambda net, x: net.symbolic(x, r2_threshold=2), ValueError, "r2_threshold: expected a finite number"),
        (
            lambda net, x: net.symbolic(x * torch.tensor([1.0, 0.0], dtype=torch.float64)),
            ValueError,
            "x: expected edges that are not constant, got .* for all rows at layer 0, out_feature 0, in_feature 1",
        ),
        (lambda net, x: kk.KAN._of([net.layers[0]]).symbolic(x, "sin"), TypeError, "lib: expected a sequence"),
        (lambda net, x: net.symbolic(x, ["x"]).formula(["u"]), ValueError, "in_names: expected 2 names, got 1"),
        (lambda net, x: net.symbolic(x, ["x"]).formula("uv"), TypeError, "in_names: expected a sequence of strings, got 'uv'"),
        (lambda net, x: net.symbolic(x, ["x"]).formula(digits=0), ValueError, "digits: expected at least 1, got 0"),
        (lambda net, x: net.symbolic(x, ["x"])(x[:, :1]), ValueError, r"x: expected 2 features .* got shape \(400, 1\)"),
        (lambda net, x: net.symbolic(x, ["x"])(x.float()), TypeError, "x: expected float64"),
    ],
)
def test_bad_input_of_networks(call, error, message):
    net, x = network_of(PAPER)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(error, match=message):
        call(net, x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_layer_of_another_kind():
    net, x = network_of(PAPER)
    net.layers[1] = torch.nn.Tanh()
    with pytest.raises(ValueError, match=r"layers\[1\]: expected a KANLinear, got Tanh"):
        net.symbolic(x)


def test_an_interrupted_search_leaves_everything_unchanged():
    net, x = network_of(PAPER)
    before = copy.deepcopy(net.state_dict())

    def interrupted(z):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        net.symbolic(x, [Function("f", interrupted)])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.layers[0].edge_mask is None


def test_the_progress_bar(monkeypatch):
    """It is shown on a terminal alone, and not at all without tqdm."""
    net, x = network_of(PAPER)

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    slow = Function("slow", lambda z: torch.sin(z))
    for terminal, shown in ((Terminal(), True), (io.StringIO(), False)):
        import tqdm

        monkeypatch.setattr(tqdm, "tqdm", lambda *a, file=terminal, **k: tqdm.std.tqdm(*a, file=file, **{**k, "delay": 0}))
        net.symbolic(x, [slow], a_range=(-1, 1))
        assert ("formulas" in terminal.getvalue()) is shown
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert isinstance(net.symbolic(x, ["x"]), SymbolicKAN)


def test_formula_without_sympy(paper, monkeypatch):
    monkeypatch.setitem(sys.modules, "sympy", None)
    with pytest.raises(ImportError, match=r"SymbolicKAN.formula needs SymPy: pip install kan_kernels\[symbolic\]"):
        paper[2].formula()
