"""`KANLinear` and `KAN` have efficient-kan's arguments, initialization, checkpoints and numbers."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils import prune

import kan_kernels as kk
from kan_kernels import reference

SHAPES = [(1, 1), (7, 3), (3, 63)]


def theirs(layer: kk.KANLinear, x: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return efficient-kan's output, dense bases times a matrix, from a state_dict in its layout."""
    rows = x.reshape(-1, x.shape[-1])
    bases = reference.basis(rows, state["grid"], layer.spline_order).flatten(1)
    weight = state["spline_weight"]
    if "spline_scaler" in state:
        weight = weight * state["spline_scaler"].unsqueeze(-1)
    y = linear(bases, weight.flatten(1))
    if "base_weight" in state:
        y = y + linear(layer.base_activation(rows), state["base_weight"])
    return y.view(*x.shape[:-1], layer.out_features)


@pytest.mark.parametrize("standalone", [True, False], ids=["spline_scaler", "no-spline_scaler"])
@pytest.mark.parametrize(
    "activation",
    [nn.SiLU, nn.Identity, nn.Tanh, nn.PReLU(dtype=torch.float64), None],
    ids=lambda a: getattr(a, "__name__", str(a)),
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_is_efficient_kans(shape, activation, standalone):
    """The output equals that of efficient-kan for any leading dimensions and for fused and other activations."""
    layer = kk.KANLinear(
        *shape,
        grid_size=4,
        spline_order=2,
        enable_standalone_scale_spline=standalone,
        base_activation=activation,
        dtype=torch.float64,
    )
    state = layer.state_dict()
    for leading in [(), (0,), (5,), (2, 3), (2, 1, 4)]:
        x = torch.randn(*leading, shape[0], dtype=torch.float64)
        torch.testing.assert_close(layer(x), theirs(layer, x, state), rtol=1e-10, atol=1e-12)


def test_checkpoint_goes_both_ways():
    """A state_dict has efficient-kan's keys, order and shapes.

    A checkpoint loads strictly and gives the same outputs, and saving returns the loaded values bit for bit.
    """
    generator = torch.Generator().manual_seed(0)
    checkpoint = {}
    for l, (i, o) in enumerate([(3, 7), (7, 2)]):  # noqa: E741
        checkpoint[f"layers.{l}.base_weight"] = torch.randn(o, i, generator=generator)
        checkpoint[f"layers.{l}.spline_weight"] = torch.randn(o, i, 8, generator=generator)
        checkpoint[f"layers.{l}.spline_scaler"] = torch.randn(o, i, generator=generator)
        checkpoint[f"layers.{l}.grid"] = torch.arange(-3, 9).mul(0.5).sub(1.2).expand(i, -1).contiguous()
    net = kk.KAN([3, 7, 2])
    net.load_state_dict(checkpoint, strict=True)
    saved = net.state_dict()
    assert list(saved) == [k for l in (0, 1) for k in checkpoint if k.startswith(f"layers.{l}.")]  # noqa: E741
    for key, value in checkpoint.items():
        assert torch.equal(saved[key], value), key
    x = torch.randn(5, 3)
    expected = x
    for l, layer in enumerate(net.layers):  # noqa: E741
        state = {k.split(".")[-1]: v for k, v in checkpoint.items() if k.startswith(f"layers.{l}.")}
        expected = theirs(layer, expected, state)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)

    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    again = kk.KAN([3, 7, 2])
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(again(x), net(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_bad_checkpoints_are_refused():
    """Missing, unexpected and wrongly shaped keys raise an error with their names, and so do knots that do not increase."""
    layer = kk.KANLinear(3, 2)
    good = layer.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*spline_weight"):
        layer.load_state_dict({k: v for k, v in good.items() if k != "spline_weight"})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*surplus"):
        layer.load_state_dict(good | {"surplus": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*spline_scaler"):
        kk.KANLinear(3, 2, enable_standalone_scale_spline=False).load_state_dict(good)
    with pytest.raises(RuntimeError, match=r"size mismatch for spline_weight"):
        layer.load_state_dict(good | {"spline_weight": torch.zeros(2, 3, 5)})
    with pytest.raises(RuntimeError, match=r"size mismatch for base_weight"):
        layer.load_state_dict(good | {"base_weight": torch.zeros(3)})
    for spoilt in (good["grid"].flip(1), good["grid"] * 0, good["grid"] * float("nan")):
        with pytest.raises(RuntimeError, match=r"grid: expected (strictly increasing|finite)"):
            layer.load_state_dict(good | {"grid": spoilt})
    with pytest.raises(RuntimeError, match=r"size mismatch for grid"):
        layer.load_state_dict(good | {"grid": torch.zeros(3, 5)})


def test_state_of_a_subclass_is_kept():
    """Buffers, parameters and prunings that a user adds are saved and loaded under torch's names."""

    class Counting(kk.KANLinear):
        def __init__(self):
            super().__init__(3, 2)
            self.register_buffer("steps", torch.tensor(7))
            self.temperature = nn.Parameter(torch.tensor(2.0))

    saved = Counting().state_dict()
    assert list(saved) == ["base_weight", "spline_weight", "spline_scaler", "temperature", "grid", "steps"]
    again = Counting()
    again.load_state_dict({k: v + 1 for k, v in saved.items()}, strict=True)
    assert (again.steps, again.temperature) == (8, 3)

    pruned, other = kk.KANLinear(3, 2), kk.KANLinear(3, 2)
    for layer in (pruned, other):
        prune.l1_unstructured(layer, "spline_weight", amount=0.5)
    other.load_state_dict(pruned.state_dict(), strict=True)
    x = torch.rand(4, 3)
    assert torch.equal(other(x), pruned(x))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*\"coef\""):
        kk.KANLinear(3, 2).load_state_dict(kk.KANLinear(3, 2).state_dict() | {"coef": torch.zeros(3, 8, 2)})


def test_parameters_are_theirs():
    """The parameters have efficient-kan's shapes and order. A parameter that the layer does not use is None."""
    layer = kk.KANLinear(3, 2)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert list(shapes.items()) == [("base_weight", (2, 3)), ("spline_weight", (2, 3, 8)), ("spline_scaler", (2, 3))]
    assert all(p.is_leaf and p.is_contiguous() for p in layer.parameters())
    bare = kk.KANLinear(3, 2, base_activation=None, enable_standalone_scale_spline=False)
    assert bare.base_weight is None
    assert bare.spline_scaler is None
    assert list(bare.state_dict()) == ["spline_weight", "grid"]


def test_initial_law():
    """kaiming_uniform_ draws base_weight and spline_scaler, and the splines interpolate noise at the inner knots.

    The random numbers are efficient-kan's.
    """
    torch.manual_seed(3)
    layer = kk.KANLinear(16, 40, grid_size=5, scale_noise=0.1, scale_base=1.0, scale_spline=2.0, dtype=torch.float64)
    torch.manual_seed(3)
    base = nn.init.kaiming_uniform_(torch.empty(40, 16, dtype=torch.float64), a=math.sqrt(5))
    noise = (torch.rand(6, 16, 40, dtype=torch.float64) - 0.5) * 0.1 / 5
    spline_scaler = nn.init.kaiming_uniform_(torch.empty(40, 16, dtype=torch.float64), a=math.sqrt(5) * 2)
    torch.testing.assert_close(layer.base_weight, base)
    torch.testing.assert_close(layer.spline_scaler, spline_scaler)
    assert layer.base_weight.abs().max() <= 1 / math.sqrt(16)

    inner = layer.grid.t()[3:-3]
    bases = reference.basis(inner, layer.grid, 3)
    for i in (0, 15):
        fit = torch.linalg.lstsq(bases[:, i], noise[:, i], driver="gelsd").solution
        torch.testing.assert_close(layer.spline_weight[:, i], fit.t(), rtol=1e-8, atol=1e-10)
    plain = kk.KANLinear(3, 2, scale_spline=0.0, enable_standalone_scale_spline=False)
    assert not plain.spline_weight.any()


def test_grid_is_efficient_kans():
    """The knots of every feature are arange(-K, G+K+1) h + lo. The grid is a buffer and not a parameter."""
    layer = kk.KANLinear(3, 2, grid_size=4, spline_order=2, grid_range=[-2, 1], dtype=torch.float64)
    expected = torch.arange(-2, 7, dtype=torch.float64) * 0.75 - 2
    torch.testing.assert_close(layer.grid, expected.expand(3, -1))
    assert "grid" not in dict(layer.named_parameters())


def test_regularization_loss():
    """The loss equals efficient-kan's. It and its gradient are finite, even if one edge or all edges are zero."""
    layer = kk.KANLinear(4, 3, dtype=torch.float64)
    edges = layer.spline_weight.abs().mean(-1)
    shares = edges / edges.sum()
    expected = 2 * edges.sum() + 3 * -(shares * shares.log()).sum()
    torch.testing.assert_close(layer.regularization_loss(2.0, 3.0), expected)
    for zero in (layer.spline_weight[2, 1], layer.spline_weight):
        with torch.no_grad():
            zero.zero_()
        loss = layer.regularization_loss()
        (gradient,) = torch.autograd.grad(loss, layer.spline_weight)
        assert loss.isfinite()
        assert gradient.isfinite().all()
    net = kk.KAN([4, 3, 2])
    torch.testing.assert_close(net.regularization_loss(), sum(l.regularization_loss() for l in net.layers))  # noqa: E741


def test_device_dtype_and_repr():
    """A layer supports dtypes, the meta device and half types like any torch layer, and its repr shows its options."""
    assert {p.dtype for p in kk.KAN([2, 3, 1], dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert kk.KANLinear(3, 2, device="meta").spline_weight.is_meta
    half = kk.KANLinear(3, 2).half()
    assert half(torch.zeros(4, 3, dtype=torch.float16)).dtype is torch.float16
    text = repr(kk.KANLinear(3, 2))
    assert "in_features=3, out_features=2, grid_size=5, spline_order=3" in text
    assert "base=fused" in text
    assert "base=plain torch" in repr(kk.KANLinear(3, 2, base_activation=nn.Tanh))
    assert "base=none" in repr(kk.KANLinear(3, 2, base_activation=None))


def test_training_learns():
    """L-BFGS, the optimizer of the KAN papers, fits a product. It needs contiguous parameters and gradients."""
    torch.manual_seed(0)
    net = kk.KAN([2, 5, 1], dtype=torch.float64)
    x = torch.rand(200, 2, dtype=torch.float64) * 2 - 1
    y = x.prod(1, keepdim=True)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=80, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert closure().sqrt() < 0.02
