"""The search for formulas: kernels against NumPy, fits against pykan's, and pykan's methods on an accelerated network."""

import contextlib
import copy
import io

import numpy as np
import pytest
import torch
from pykan_models import inputs, network, symbolic

import kan_kernels as kk
from kan_kernels import ops, reference
from kan_kernels.interop.pykan.formulas import formula_name
from kan_kernels.reference import FORMULAS
from kan_kernels.symbolic import affine_fit

pytestmark = pytest.mark.filterwarnings("ignore")

NUMPY = {
    "x": lambda z: z,
    "x^2": lambda z: z**2,
    "x^3": lambda z: z**3,
    "x^4": lambda z: z**4,
    "x^5": lambda z: z**5,
    "1/x": lambda z: 1 / z,
    "1/x^2": lambda z: 1 / z**2,
    "1/x^3": lambda z: 1 / z**3,
    "1/x^4": lambda z: 1 / z**4,
    "1/x^5": lambda z: 1 / z**5,
    "sqrt": np.sqrt,
    "x^1.5": lambda z: np.sqrt(z) ** 3,
    "1/sqrt(x)": lambda z: 1 / np.sqrt(z),
    "exp": np.exp,
    "log": np.log,
    "abs": np.abs,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "tanh": np.tanh,
    "sgn": np.sign,
    "arcsin": np.arcsin,
    "arccos": np.arccos,
    "arctan": np.arctan,
    "arctanh": np.arctanh,
    "gaussian": lambda z: np.exp(-(z**2)),
}


def dense(function, x, target, a, b):
    """Return r2 (A, B) from the whole tensor (N, A, B), in NumPy, and the condition of its variance."""
    with np.errstate(all="ignore"):
        values = function(a[:, None] * x[:, None, None] + b)
        centred = values - values.mean(0)
        along, square = (centred * target[:, None, None]).sum(0), (centred**2).sum(0)
        return along**2 / (square * (target**2).sum() + 1e-4), np.abs(values).max(0) ** 2 * len(x) / square


def cells(x, target, name, a, b, operator=ops.affine_cells):
    x, target, a, b = map(torch.from_numpy, (x, target, a, b))
    return operator(x, target, name, a, b)


def samples(N, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.uniform(-1, 1, N)
    x[: min(3, N)] = [-1.0, 0.5, 1.0][: min(3, N)]
    y = np.sin(3 * x) + 0.3 * x
    return x, y - y.mean()


@pytest.mark.parametrize("N", [1, 7, 63, 513, 1031])
@pytest.mark.parametrize("name", NUMPY)
def test_cells(instruction_set, name, N):
    """The kernels agree with the whole tensor, at poles and ends of domains, and for any number of samples."""
    x, target = samples(N)
    a, b = np.linspace(-10, 10, 7), np.linspace(-10, 10, 9)
    expected, condition = dense(NUMPY[name], x, target, a, b)
    values = cells(x, target, name, a, b).numpy()
    assert values.shape == (7, 9)
    np.testing.assert_array_equal(np.isfinite(values), np.isfinite(expected))
    known = np.isfinite(expected) & (condition < 1e20)
    error = np.abs(values - expected)[known]
    assert (error <= 1e-13 * (1 + np.sqrt(condition[known])) * (expected[known] + 1e-6)).all(), error.max()


def test_every_formula_is_tested():
    assert set(NUMPY) == set(FORMULAS)


@pytest.mark.parametrize("name", NUMPY)
def test_the_reference(name):
    x, target = samples(63)
    a, b = np.linspace(-3, 3, 5), np.linspace(-2, 2, 4)
    expected, _ = dense(NUMPY[name], x, target, a, b)
    values = cells(x, target, name, a, b, reference.affine_cells)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9, atol=1e-15)


def test_the_digits_of_a_good_fit_survive(instruction_set):
    """1 - r2 of 1e-12 keeps four digits. The exact value is from extended precision."""
    x, _ = samples(1000)
    noise = np.random.default_rng(1).standard_normal(1000)
    y = np.sin(2 * x + 1) + 1e-6 * noise
    target = y - y.mean()
    a, b = np.array([2.0]), np.array([1.0])
    with_ridge = cells(x, target, "sin", a, b)
    f, t = np.sin(2 * x.astype(np.longdouble) + 1), target.astype(np.longdouble)
    f -= f.mean()
    square = (f**2).sum() * (t**2).sum()
    exact = (f * t).sum() ** 2 / (square + np.longdouble("1e-4"))
    assert abs(float((np.longdouble(with_ridge.item()) - exact) / (1 - (f * t).sum() ** 2 / square))) < 1e-3


def test_large_arguments(instruction_set):
    """The sine of a large argument uses another reduction."""
    x, target = samples(63)
    a, b = np.array([1e7, 3e5]), np.array([0.0, 1e9])
    for name in ("sin", "cos", "tan"):
        expected, _ = dense(NUMPY[name], x, target, a, b)
        values = cells(x, target, name, a, b)
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-8)


def test_any_number_of_threads_gives_the_same_bits():
    x, target = (torch.from_numpy(v) for v in samples(3000))
    a = b = torch.linspace(-10, 10, 101, dtype=torch.float64)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            results.append(ops.affine_cells(x, target, "tan", a, b))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_operators_registration():
    x, target = (torch.from_numpy(v) for v in samples(7))
    a, b = torch.linspace(-1, 1, 3, dtype=torch.float64), torch.linspace(-1, 1, 5, dtype=torch.float64)
    torch.library.opcheck(ops.affine_cells, (x, target, "exp", a, b), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("x", "y", "shapes"),
    [((3, 1), (3, 1), r"\(3, 1\) and \(3, 1\)"), ((3,), (4,), r"\(3,\) and \(4,\)"), ((0,), (0,), r"\(0,\)")],
)
def test_bad_samples(x, y, shapes):
    with pytest.raises(ValueError, match=rf"x and y: expected two tensors \(N,\), N >= 1, got shapes {shapes}"):
        affine_fit(torch.rand(x), torch.rand(y), torch.sin)


def library():
    from kan.utils import SYMBOLIC_LIB

    return SYMBOLIC_LIB


CURVES = {
    "sine": lambda x: torch.sin(3 * x + 0.3) + 0.1 * x,
    "square": lambda x: (x - 0.3) ** 2,
    "constant": lambda x: 0 * x + 2,
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("name", library())
@pytest.mark.parametrize("named", [True, False], ids=["kernel", "any function"])
def test_fits_are_pykans(name, curve, named):
    """Cells of exp, log and powers tie up to rounding: another one can win, and the ranges then shrink in another way."""
    from kan.utils import fit_params

    torch.manual_seed(1)
    x = torch.rand(60, dtype=torch.float64) * 2 - 1
    y, fun = CURVES[curve](x), library()[name][0]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        theirs, r2 = fit_params(x, y, fun, verbose=False)
        ours = affine_fit(x, y, fun, formula=formula_name(name, fun) if named else None)
    finally:
        torch.set_default_dtype(before)

    def of(parameters):
        a, b, c, d = parameters
        return c * torch.nan_to_num(fun(a * x + b)) + d

    assert abs(ours.r2 - r2) <= 1e-6
    if abs(ours.r2 - r2) <= 1e-12:
        torch.testing.assert_close(of(ours.parameters), of(theirs), rtol=0, atol=1e-6)
    if curve == "constant":
        torch.testing.assert_close(ours.parameters, theirs)


def test_nothing_of_pykans_tensors_in_memory():
    """The largest tensor of a fit is that of the samples or of a block, not that of the (N, 101, 101) values."""
    from allocations import Allocations

    x = torch.rand(100_000, dtype=torch.float64)
    for formula in ("sin", None):
        with Allocations() as seen:
            affine_fit(x, torch.sin(x), torch.sin, formula=formula, iterations=1, grid_number=101 if formula else 5)
        assert seen.largest <= 2_000_000


def quietly(function, *arguments, **keywords):
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
        result = function(*arguments, **keywords)
    return result, output.getvalue()


@pytest.fixture
def trained(float64_in_a_directory_of_its_own):
    """Return a network of pykan's with formulas and a masked edge, and an accelerated copy."""
    net = symbolic(network((2, 3, 1)))
    net.act_fun[0].mask.data[1, 2] = 0.0
    other = kk.accelerate(copy.deepcopy(net))
    x = inputs(net)[:60]
    for each in (net, other):
        each(x)
    return net, other


LIB = ["x", "x^2", "sin", "sqrt", "x^0.5", "0"]


def test_auto_symbolic(trained):
    """The same functions, messages and outputs as pykan's, in a fraction of the evaluations."""
    printed = [quietly(net.auto_symbolic, lib=LIB)[1] for net in trained]
    theirs, ours = (dict(line.rsplit(" with ", 1) for line in text.splitlines() if " with " in line) for text in printed)
    assert theirs.keys() == ours.keys()
    assert len(theirs) >= 5
    for edge, what in theirs.items():
        assert what.partition(",")[0] == ours[edge].partition(",")[0], edge
    net, other = trained
    for theirs_l, ours_l in zip(net.symbolic_fun, other.symbolic_fun, strict=True):
        assert theirs_l.funs_name == ours_l.funs_name
        assert torch.equal(theirs_l.mask, ours_l.mask)
    x = inputs(net)
    torch.testing.assert_close(other(x), net(x), rtol=1e-5, atol=1e-5)


def fitted(width, function, dtype):
    """Return a network of pykan's after some steps of training, an accelerated one with the same weights, and inputs."""
    torch.set_default_dtype(dtype)
    net, other = (network(width, noise_scale=0.1) for _ in range(2))
    x = torch.rand(100, net.width_in[0]) * 2 - 1
    data = {"train_input": x, "train_label": function(x), "test_input": x, "test_label": function(x)}
    quietly(net.fit, data, opt="LBFGS", steps=10, lamb=0.001)
    other.load_state_dict(net.state_dict())
    return net, kk.accelerate(other), x


WHOLE = {
    "hello world": ((2, 1, 1), lambda x: torch.exp(torch.sin(torch.pi * x[:, :1]) + x[:, 1:] ** 2), torch.float64),
    "two outputs": ((2, 2), lambda x: torch.cat([x[:, :1].abs() + x[:, 1:], torch.tanh(3 * x[:, :1])], 1), torch.float64),
    "float32": ((1, 2, 1), lambda x: torch.log(1.1 + x), torch.float32),
}


@pytest.mark.parametrize("name", WHOLE)
def test_auto_symbolic_with_the_whole_library(name, float64_in_a_directory_of_its_own):
    """The same functions as pykan's, except for functions that fit equally well, whose order is rounding in pykan."""
    net, other, x = fitted(*WHOLE[name])
    for each in (net, other):
        each(x)
        quietly(each.auto_symbolic)
    for level, (theirs, ours) in enumerate(zip(net.symbolic_fun, other.symbolic_fun, strict=True)):
        for o, names in enumerate(theirs.funs_name):
            for i, name in enumerate(names):
                if ours.funs_name[o][i] != name:
                    r2 = [
                        quietly(net.fix_symbolic, level, i, o, each, verbose=False)[0] for each in (name, ours.funs_name[o][i])
                    ]
                    assert float(r2[0]) == pytest.approx(float(r2[1]), abs=1e-6), (name, ours.funs_name[o][i])
                    assert library()[name][2] == library()[ours.funs_name[o][i]][2]


def test_suggest_symbolic(trained):
    (theirs, table), (ours, our_table) = (
        quietly(net.suggest_symbolic, 0, 1, 0, lib=LIB, weight_simple=0.0) for net in trained
    )
    assert theirs[0] == ours[0]
    assert theirs[1:2] == ours[1:2]
    assert ours[2] == pytest.approx(theirs[2], rel=1e-6)
    assert theirs[3] == ours[3]
    assert [line.split()[1] for line in table.splitlines()] == [line.split()[1] for line in our_table.splitlines()]
    for net in trained:
        assert net.symbolic_fun[0].funs_name[0][1] == "0", "the edge is a spline again"


def test_fix_symbolic(trained):
    """Fitted, unfitted, and with a function of the user's."""
    for arguments, options in (
        ((0, 1, 0, "sin"), {"a_range": (-3, 3), "b_range": (-2, 2)}),
        ((0, 0, 0, "tan"), {}),
        ((1, 0, 0, "x^2"), {"fit_params_bool": False}),
        ((1, 2, 0, torch.sigmoid), {"fit_params_bool": False}),
    ):
        (theirs, message), (ours, our_message) = (quietly(net.fix_symbolic, *arguments, **options) for net in trained)
        assert (theirs is None) == (ours is None)
        if theirs is not None:
            torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=1e-6, atol=1e-9)
        assert message.splitlines()[:1] == our_message.splitlines()[:1] or "r2 is" in message
        layer, i, j, _ = arguments
        theirs, ours = (net.symbolic_fun[layer].affine[j, i] for net in trained)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    x = inputs(trained[0])
    torch.testing.assert_close(trained[1](x), trained[0](x), rtol=1e-6, atol=1e-6)


def test_a_masked_edge(trained):
    """pykan returns an r2 of -1e8 for it."""
    for net in trained:
        assert quietly(net.fix_symbolic, 0, 1, 2, "sin")[0] == -1e8


def test_a_function_that_the_user_adds_or_replaces(trained):
    """It is called, also if it has the name of one of pykan's."""
    from kan.utils import add_symbolic

    before = dict(library())
    try:
        quietly(add_symbolic, "erf", torch.special.erf, c=2)
        quietly(add_symbolic, "sin", lambda z: torch.sin(2 * z) + z, c=2)
        for name in ("erf", "sin"):
            theirs, ours = (quietly(net.fix_symbolic, 0, 1, 0, name)[0] for net in trained)
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
            assert formula_name(name, library()[name][0]) is None
    finally:
        library().clear()
        library().update(before)


def test_restoring_returns_pykans_own(trained):
    net = trained[1]
    kk.restore(net)
    assert type(net).fix_symbolic.__module__ == "kan.MultKAN"
    assert not hasattr(type(net), "mixin")


def test_an_overridden_search_is_kept(float64_in_a_directory_of_its_own):
    """A symbolic layer with its own `fix_symbolic` is called."""
    net = network((2, 1))
    called = []
    layer = net.symbolic_fun[0]
    own = layer.fix_symbolic
    layer.fix_symbolic = lambda *arguments, **keywords: called.append(1) or own(*arguments, **keywords)
    kk.accelerate(net)
    net(inputs(net))
    quietly(net.fix_symbolic, 0, 0, 0, "sin")
    assert called == [1]
