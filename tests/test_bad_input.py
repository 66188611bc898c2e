"""Invalid values of every argument raise the right type, with a message that states the expected and the given value."""

import numpy
import pytest
import torch
from torch import nn

import kan_kernels as kk

I, O, G, K = 3, 2, 5, 3  # noqa: E741


def good():
    knots = torch.linspace(-2, 2, G + 2 * K + 1)
    return {
        "x": torch.zeros(4, I),
        "spline_weight": torch.zeros(O, I, G + K),
        "grid": knots.expand(I, -1).contiguous(),
        "base_weight": torch.zeros(O, I),
        "spline_scaler": torch.ones(O, I),
    }


def call(**changed):
    values = good() | changed
    x, spline_weight, grid = values.pop("x"), values.pop("spline_weight"), values.pop("grid")
    return kk.kan_linear(x, spline_weight, grid, values.pop("base_weight"), **values)


def ragged():
    return torch.nested.nested_tensor([torch.zeros(2, I), torch.zeros(3, I)], layout=torch.jagged)


TENSORS = [
    ("x", [[0.0] * I], TypeError, "x: expected a torch.Tensor, got list"),
    ("x", None, TypeError, "x: expected a torch.Tensor, got NoneType"),
    ("x", torch.zeros(4, I, dtype=torch.int64), TypeError, "x: expected a floating-point dtype .* got int64"),
    ("x", torch.zeros(4, I, dtype=torch.complex64), TypeError, "x: expected a floating-point dtype .* got complex64"),
    ("x", torch.zeros(4, I).to_sparse(), TypeError, "x: expected a dense tensor, got torch.sparse_coo"),
    ("x", ragged(), TypeError, "x: expected a dense tensor, got a nested tensor"),
    ("grid", torch.zeros(I, G + 2 * K + 1).to_sparse(), TypeError, "grid: expected a dense tensor, got torch.sparse_coo"),
    (
        "spline_weight",
        torch.zeros(O, I, G + K).to_mkldnn(),
        TypeError,
        "spline_weight: expected a dense tensor, got torch._mkldnn",
    ),
    ("base_weight", torch.zeros(O, I).to_sparse(), TypeError, "base_weight: expected a dense tensor, got torch.sparse_coo"),
    ("x", torch.tensor(0.0), ValueError, r"x: expected at least one dimension \(..., I\), got a scalar"),
    ("x", torch.zeros(4, I + 1), ValueError, r"x: expected 3 features .* got shape \(4, 4\)"),
    (
        "x",
        torch.zeros(4, I, dtype=torch.float64),
        TypeError,
        r"x: expected float32, the dtype of spline_weight, got float64; use x\.float\(\)$",
    ),
    ("x", torch.zeros(4, I, device="meta"), ValueError, "x: expected cpu, the device of spline_weight"),
    ("spline_weight", "spline_weight", TypeError, "spline_weight: expected a torch.Tensor, got str"),
    ("spline_weight", torch.zeros(O, I), ValueError, r"spline_weight: expected 3 dimensions \(O, I, M\), got shape \(2, 3\)"),
    (
        "spline_weight",
        torch.zeros(O, I, G + K, dtype=torch.int32),
        TypeError,
        "spline_weight: expected a floating-point dtype",
    ),
    (
        "spline_weight",
        torch.zeros(O, I, G + K, dtype=torch.float64),
        TypeError,
        r"x: expected float64, the dtype of spline_weight, got float32; use x\.double\(\)$",
    ),
    (
        "spline_weight",
        torch.zeros(O, I, G + K, device="meta"),
        ValueError,
        "x: expected meta, the device of spline_weight, got cpu",
    ),
    ("spline_weight", torch.zeros(0, I, G + K), ValueError, "spline_weight: expected at least one feature and one output"),
    (
        "spline_weight",
        torch.zeros(O, I, 30),
        ValueError,
        "grid: expected .* 30 bases of spline_weight .* 12 knots, which implies K = -19",
    ),
    (
        "spline_weight",
        torch.zeros(O, I, 2),
        ValueError,
        "grid: expected .* 2 bases of spline_weight .* 12 knots, which implies K = 9 and G = -7",
    ),
    ("grid", 5, TypeError, "grid: expected a torch.Tensor, got int"),
    ("grid", torch.zeros(12), ValueError, r"grid: expected 2 dimensions \(I, G\+2K\+1\), got shape \(12,\)"),
    (
        "grid",
        torch.zeros(I + 1, 12),
        ValueError,
        r"grid: expected 3 rows, one per feature of spline_weight, got shape \(4, 12\)",
    ),
    ("grid", torch.zeros(I, 12, dtype=torch.int64), TypeError, "grid: expected a floating-point dtype"),
    (
        "grid",
        torch.zeros(I, 12, dtype=torch.float16),
        TypeError,
        "grid: expected float32, the dtype of spline_weight, or a wider dtype, got float16",
    ),
    ("grid", torch.zeros(I, 12, device="meta"), ValueError, "grid: expected cpu, the device of spline_weight"),
    ("grid", torch.zeros(I, 8), ValueError, "grid: expected G.2K.1 knots .* got 8 knots, which implies K = -1"),
    ("base_weight", 1.0, TypeError, "base_weight: expected a torch.Tensor, got float"),
    ("base_weight", torch.zeros(I, O), ValueError, r"base_weight: expected shape \(O, I\) = \(2, 3\), got \(3, 2\)"),
    ("base_weight", torch.zeros(I), ValueError, r"base_weight: expected shape \(O, I\) = \(2, 3\), got \(3,\)"),
    ("base_weight", torch.zeros(O, I, dtype=torch.bool), TypeError, "base_weight: expected a floating-point dtype"),
    (
        "base_weight",
        torch.zeros(O, I).double(),
        TypeError,
        "base_weight: expected float32, the dtype of spline_weight",
    ),
    (
        "base_weight",
        torch.zeros(O, I, device="meta"),
        ValueError,
        "base_weight: expected cpu, the device of spline_weight, got meta",
    ),
    ("spline_scaler", 1.0, TypeError, "spline_scaler: expected a torch.Tensor, got float"),
    ("spline_scaler", torch.zeros(I, O), ValueError, r"spline_scaler: expected shape \(O, I\) = \(2, 3\), got \(3, 2\)"),
    ("spline_scaler", torch.zeros(O, I).double(), TypeError, "spline_scaler: expected float32, the dtype of spline_weight"),
    (
        "spline_scaler",
        torch.zeros(O, I, device="meta"),
        ValueError,
        "spline_scaler: expected cpu, the device of spline_weight, got meta",
    ),
    (
        "base_activation",
        "relu",
        ValueError,
        r"base_activation: expected one of \('silu', 'identity'\) or a callable, got 'relu'",
    ),
    ("base_activation", 3, TypeError, "base_activation: expected one of .*, a callable or None, got int"),
    ("base_activation", None, ValueError, "base_weight: expected None because base_activation is None, got a tensor"),
]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("argument", "value", "error", "message"), TENSORS, ids=lambda v: v if isinstance(v, str) else "")
def test_kan_linear(argument, value, error, message, backend):
    with kk.use_backend(backend), pytest.raises(error, match=message):
        call(**{argument: value})


def test_the_good_arguments_are_good():
    assert call().shape == (4, O)
    assert call(base_activation=None, base_weight=None).shape == (4, O)
    assert call(grid=good()["grid"].double()).shape == (4, O)


CONSTRUCTOR = [
    ("in_features", 0, ValueError, "in_features: expected at least 1, got 0"),
    ("in_features", 2.0, TypeError, "in_features: expected an int, got float"),
    ("in_features", True, TypeError, "in_features: expected an int, got bool"),
    ("out_features", -1, ValueError, "out_features: expected at least 1, got -1"),
    ("grid_size", 0, ValueError, "grid_size: expected at least 1, got 0"),
    ("grid_size", "5", TypeError, "grid_size: expected an int, got str"),
    ("spline_order", -1, ValueError, "spline_order: expected at least 0, got -1"),
    ("spline_order", None, TypeError, "spline_order: expected an int, got NoneType"),
    ("scale_noise", "x", TypeError, "scale_noise: expected a number, got str"),
    ("scale_base", float("nan"), ValueError, "scale_base: expected a finite number, got nan"),
    ("scale_spline", float("inf"), ValueError, "scale_spline: expected a finite number, got inf"),
    ("grid_eps", 1.5, ValueError, r"grid_eps: expected a finite number in \[0.0, 1.0\], got 1.5"),
    ("grid_range", (1, -1), ValueError, r"grid_range: expected low < high, got \[1, -1\]"),
    ("grid_range", (0, 1, 2), ValueError, r"grid_range: expected two numbers, got \[0, 1, 2\]"),
    ("grid_range", 1.0, TypeError, "grid_range: expected a pair of numbers, got float"),
    ("grid_range", ("a", "b"), TypeError, r"grid_range\[0\]: expected a number, got str"),
    ("grid_range", (0, float("inf")), ValueError, r"grid_range\[1\]: expected a finite number"),
    ("grid_range", (1e6, 1e6 + 1e-3), ValueError, "grid: expected strictly increasing knots in every row"),
    ("base_activation", 5, TypeError, "base_activation: expected an nn.Module, its class or None, got 5"),
    ("base_activation", torch.relu, TypeError, "base_activation: expected an nn.Module, its class or None"),
    ("dtype", torch.int64, TypeError, "dtype: expected one of .* got torch.int64"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), CONSTRUCTOR, ids=lambda v: v if isinstance(v, str) else "")
def test_kan_linear_module(argument, value, error, message):
    with pytest.raises(error, match=message):
        kk.KANLinear(**({"in_features": 3, "out_features": 2} | {argument: value}))


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (5, TypeError, "layers_hidden: expected a sequence of ints, got int"),
        ("34", TypeError, "layers_hidden: expected a sequence of ints, got str"),
        ([3], ValueError, r"layers_hidden: expected at least an input and an output size, got \[3\]"),
        ([3, 0, 1], ValueError, r"layers_hidden\[1\]: expected at least 1, got 0"),
        ([3, 2.5], TypeError, r"layers_hidden\[1\]: expected an int, got float"),
    ],
    ids=str,
)
def test_kan(layers, error, message):
    with pytest.raises(error, match=message):
        kk.KAN(layers)


def test_module_input():
    """A layer checks x against its parameters."""
    layer = kk.KANLinear(3, 2)
    with pytest.raises(ValueError, match=r"x: expected 3 features .* got shape \(4, 5\)"):
        layer(torch.zeros(4, 5))


LAYER_DTYPES = [
    (torch.float32, torch.float64, r"got float64; use layer\.double\(\) or x\.float\(\)$"),
    (torch.float64, torch.float32, r"got float32; use layer\.float\(\) or x\.double\(\)$"),
    (torch.bfloat16, torch.float16, r"got float16; use layer\.half\(\) or x\.bfloat16\(\)$"),
]


@pytest.mark.parametrize(("own", "given", "message"), LAYER_DTYPES, ids=str)
@pytest.mark.parametrize("method", ["forward", "edge_norms"])
def test_layer_input_dtype(method, own, given, message):
    """The message of a layer, alone or in a net, names the dtype of its parameters and both possible casts."""
    layer, x = kk.KANLinear(3, 2, dtype=own), torch.zeros(4, 3, dtype=given)
    expected = f"^x: expected {str(own).removeprefix('torch.')}, the dtype of the layer's parameters, " + message
    with pytest.raises(TypeError, match=expected):
        getattr(layer, method)(x)
    with pytest.raises(TypeError, match=expected):
        kk.KAN([3, 4, 2], dtype=own)(x)


def test_layer_input_dtype_under_autocast():
    """The dtype of x may differ from the parameters' if autocast casts it. As in `F.linear`, float64 is not cast."""
    layer = kk.KANLinear(3, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.zeros(4, 3, dtype=torch.float16)).dtype is torch.bfloat16
        with pytest.raises(TypeError, match="x: expected float32, the dtype of the layer's parameters, got float64"):
            layer(torch.zeros(4, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("fast", ValueError, r"name: expected one of .* got 'fast'"),
        (None, ValueError, "name: expected one of .* got None"),
        ("triton", ValueError, "name: 'triton' is not available: "),
    ],
)
def test_use_backend(name, error, message):
    with pytest.raises(error, match=message):
        kk.use_backend(name)


def test_a_plain_activation_must_be_elementwise():
    message = r"base_activation: expected an elementwise function, got shape \(4, 1\) from it for shape \(4, 3\)"
    with pytest.raises(ValueError, match=message):
        call(base_activation=lambda x: x[:, :1])
    for activation, kind in ((lambda x: None, "NoneType"), (lambda x: nn.Sequential(), "Sequential")):
        with pytest.raises(TypeError, match=f"base_activation: expected a function that returns a tensor, got {kind} from it"):
            call(base_activation=activation)
    with pytest.raises(TypeError, match=r"base_activation: expected a class that is constructed without arguments"):
        kk.KANLinear(3, 2, base_activation=nn.Linear)
    assert call(base_activation=nn.Tanh(), base_weight=None).shape == (4, O)


def test_sizes_and_numbers_may_be_numpys():
    layer = kk.KANLinear(numpy.int64(3), 2, numpy.int32(4), scale_noise=numpy.float32(0.1))
    assert type(layer.in_features) is type(layer.grid_size) is int
    assert kk.KAN([numpy.int64(3), 2])(torch.zeros(4, 3)).shape == (4, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0],), TypeError, "x: expected a torch.Tensor, got list"),
        ((None,), TypeError, "x: expected a torch.Tensor, got NoneType"),
        ((torch.zeros(4, 3), [1.0, 1.0]), TypeError, "out_scores: expected a torch.Tensor, got list"),
        ((torch.zeros(4, 3), torch.ones(5)), ValueError, r"out_scores: expected 2 scores .* got shape \(5,\)"),
        ((torch.zeros(4, 3), torch.ones(2, device="meta")), ValueError, "out_scores: expected a tensor on cpu, as x, got one"),
        ((torch.zeros(1, 3),), ValueError, "x: expected at least 2 rows"),
    ],
)
def test_edge_scores(arguments, error, message):
    with pytest.raises(error, match=message):
        kk.KANLinear(3, 2).edge_scores(*arguments)


def test_tensors_without_values():
    layer, meta = kk.KANLinear(3, 2), kk.KANLinear(3, 2, device="meta")
    with pytest.raises(ValueError, match="grid: expected a tensor with values, got one on the meta device"):
        layer.set_grid(meta.grid)
    with pytest.raises(ValueError, match="x: expected a tensor with values, got one on the meta device"):
        meta.update_grid(torch.zeros(4, 3, device="meta"))


def test_a_network_without_layers():
    net = kk.KAN([3, 2])
    net.layers = nn.ModuleList([nn.Linear(3, 2)])
    for call_of in (net.attribute, net.prune, net.regularization_loss):
        with pytest.raises(ValueError, match="layers: expected at least one KANLinear, got a network without any"):
            call_of(torch.zeros(4, 3))


def test_values_of_a_state_dict():
    with pytest.raises(TypeError, match=r"source\['layers.0.base_weight'\]: expected a torch.Tensor, got int"):
        kk.KAN.from_efficient_kan({"layers.0.base_weight": 1})
