"""`KAN.from_pykan`, `to_pykan` and `from_efficient_kan` keep the function in both directions, or raise with a reason."""

import random

import numpy
import peer_layers
import pytest
import torch
from pykan_models import affine, inputs, kan, masked, network, symbolic
from torch import nn

import kan_kernels as kk

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("float64_in_a_directory_of_its_own")]


def assert_same_state(ours, theirs):
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for (name, value), expected in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]


CARRIED = {
    "plain": lambda: network(),
    "finer": lambda: network((2, 7, 1, 3), grid=9, k=2),
    "layers of their own": lambda: network((2, 3, 1), grid=[4, 6], k=[2, 3]),
    "masked": lambda: masked(network()),
    "identity": lambda: network(base_fun="identity"),
    "tanh": lambda: network(base_fun=nn.Tanh()),
    "frozen": lambda: network(sp_trainable=False, sb_trainable=False),
    "float32": lambda: network().type(torch.float32),
}


@pytest.mark.parametrize("which", CARRIED)
def test_pykans_weights_there_and_back(which):
    theirs = CARRIED[which]()
    x = inputs(theirs).to(theirs.act_fun[0].coef.dtype)
    ours = kk.KAN.from_pykan(theirs)
    torch.testing.assert_close(ours(x), theirs(x))
    back = ours.to_pykan()
    assert_same_state(back, theirs)
    assert (back.grid, back.k) == (theirs.grid, theirs.k)
    assert back.base_fun_name == theirs.base_fun_name or which == "tanh"
    torch.testing.assert_close(back(x), theirs(x))
    assert_same_state(kk.KAN.from_pykan(back), ours)


def test_pykans_checkpoint():
    theirs = masked(network())
    ours = kk.KAN.from_pykan(theirs.state_dict())
    assert_same_state(ours, kk.KAN.from_pykan(theirs))
    assert ours.layers[0].edge_mask[0, 0] == 0
    identity = network(base_fun="identity")
    x = inputs(identity)
    torch.testing.assert_close(kk.KAN.from_pykan(identity.state_dict(), nn.Identity)(x), identity(x))


def test_an_accelerated_network():
    theirs = kk.accelerate(network())
    x = inputs(theirs)
    torch.testing.assert_close(kk.KAN.from_pykan(theirs)(x), theirs(x))


def test_no_base():
    """pykan's scale_base has no effect without a base function and is not converted."""
    theirs = network(base_fun="zero")
    x = inputs(theirs)
    ours = kk.KAN.from_pykan(theirs)
    assert ours.layers[0].base_weight is None
    torch.testing.assert_close(ours(x), theirs(x))
    back = ours.to_pykan()
    torch.testing.assert_close(back(x), theirs(x))
    assert back.base_fun_name == "zero"


@pytest.mark.parametrize(
    "options",
    [{}, {"enable_standalone_scale_spline": False}, {"base_activation": None}, {"base_activation": nn.Tanh}],
    ids=str,
)
def test_ours_there_and_back(options):
    ours = kk.KAN([3, 4, 2], grid_size=7, spline_order=2, grid_eps=0.5, **options)
    ours.layers[0].spline_weight.requires_grad_(False)
    x = torch.randn(63, 3)
    theirs = ours.to_pykan()
    torch.testing.assert_close(theirs(x), ours(x))
    back = kk.KAN.from_pykan(theirs)
    assert_same_state(back, ours)
    assert [layer.grid_eps for layer in back.layers] == [0.5, 0.5]


def test_what_pykan_does_with_it():
    """A net that was converted to pykan for its plots, pruning and formulas can be converted back."""
    ours = kk.KAN([2, 3, 1])
    x = torch.rand(200, 2) * 2 - 1
    pruned = kk.accelerate(ours.to_pykan())
    pruned(x)
    pruned = pruned.prune(node_th=0.0, edge_th=0.2)
    back = kk.KAN.from_pykan(pruned)
    torch.testing.assert_close(back(x), pruned(x))


def test_conversion_draws_no_random_numbers():
    ours = kk.KAN([2, 3, 1])
    states = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()
    kk.KAN.from_pykan(ours.to_pykan())
    kk.KAN.from_efficient_kan(ours.state_dict())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (numpy.random.get_state()[1].tolist(), random.getstate()) == states[1:]


@pytest.mark.parametrize("source", [lambda net: net, lambda net: net.state_dict()], ids=["model", "state_dict"])
@pytest.mark.parametrize("scaled", [True, False])
def test_efficient_kans_weights_there_and_back(source, scaled):
    theirs = peer_layers.KAN([3, 5, 2], grid_size=7, spline_order=2, scaled=scaled)
    theirs.layers[0].base_weight.requires_grad_(False)
    x = torch.randn(63, 3)
    ours = kk.KAN.from_efficient_kan(source(theirs))
    torch.testing.assert_close(ours(x), theirs(x))
    assert set(ours.state_dict()) == set(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    theirs.load_state_dict(ours.state_dict())
    if isinstance(source(theirs), nn.Module):
        assert not ours.layers[0].base_weight.requires_grad


def test_efficient_kans_activation():
    theirs = peer_layers.KAN([3, 2], activation=nn.PReLU)
    x = torch.randn(63, 3)
    for ours in (kk.KAN.from_efficient_kan(theirs), kk.KAN.from_efficient_kan(theirs.state_dict(), nn.PReLU())):
        torch.testing.assert_close(ours(x), theirs(x))
    assert kk.KAN.from_efficient_kan(kk.accelerate(theirs)).layers[0].base_activation is not theirs.layers[0].base_activation


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


def changed_inputs():
    net = network()
    net(inputs(net))
    return net.prune_input(active_inputs=[0, 2])


REFUSED_OF_PYKAN = {
    "formulas": (lambda: symbolic(network()), "layer 0 has symbolic edges, the first from input 0 to output 1"),
    "products": (lambda: network((3, [2, 2], 2)), r"layer 0 has multiplication nodes \(6 sums for 4 nodes\)"),
    "trained affines": (
        lambda: network(affine_trainable=True),
        "node_bias_0 is trained .*, which `KAN` does not support",
    ),
    "biases": (lambda: affine(network()), "node_bias_0 is not 0 everywhere"),
    "scales": (lambda: _scaled(network()), "subnode_scale_1 is not 1 everywhere"),
    "inputs": (changed_inputs, r"input_id \[0, 2\] selects inputs, which `KAN` does not"),
    "a function": (lambda: network(base_fun=torch.tanh), "base_fun .* is a plain function"),
    "another module": (
        lambda: nn.Linear(2, 2),
        "expected a MultKAN of pykan 0.2.8 or its state_dict, got torch.nn.*Linear",
    ),
    "no state": (lambda: [1, 2], "expected a MultKAN of pykan 0.2.8 or its state_dict, got list"),
    "other keys": (lambda: {"weight": torch.zeros(2)}, r"expected keys act_fun.0.\*, act_fun.1.\*, ..., got \['weight'\]"),
    "a missing key": (
        lambda: without(network().state_dict(), "act_fun.1.mask"),
        r"in act_fun.1, got \['coef', 'grid', 'scale",
    ),
    "another grid": (
        lambda: network().state_dict() | {"act_fun.0.grid": torch.zeros(3, 4)},
        r"expected grid \(I, G\+2K\+1\) for coef \(I, O, G\+K\), got \(3, 4\) for \(3, 5, 8\)",
    ),
}


@pytest.mark.parametrize("as_state", [False, True], ids=["model", "state_dict"])
def test_an_older_pykans_state_is_refused_by_name(as_state):
    """pykan up to 0.0.5 stored one row per edge in coef, grid, mask and the scales."""
    net = network((3, 5))
    layer = net.act_fun[0]
    for name, shape in {"coef": (15, 8), "grid": (15, 6), "mask": (15,), "scale_base": (15,), "scale_sp": (15,)}.items():
        setattr(layer, name, nn.Parameter(torch.ones(shape)))
    message = r"expected act_fun.0.coef \(I, O, G\+K\) of pykan 0.2.8, got shape \(15, 8\), the shape \(I \* O, G\+K\) of"
    with pytest.raises(ValueError, match=message):
        kk.KAN.from_pykan(net.state_dict() if as_state else net)


def _scaled(net):
    net.subnode_scale[1].data[0] = 2.0
    return net


@pytest.mark.parametrize("which", REFUSED_OF_PYKAN)
@pytest.mark.parametrize("as_state", [False, True], ids=["model", "state_dict"])
def test_what_cannot_be_carried_is_refused(which, as_state):
    make, message = REFUSED_OF_PYKAN[which]
    source = make()
    only_models_tell = which in ("inputs", "a function", "another module", "trained affines")
    if as_state and (only_models_tell or not isinstance(source, nn.Module)):
        source = {"weight": torch.zeros(2)}
        message = REFUSED_OF_PYKAN["other keys"][1]
    elif as_state:
        source = source.state_dict()
    with pytest.raises((TypeError, ValueError), match=message):
        kk.KAN.from_pykan(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.layers.append(nn.Linear(1, 1)), "layers: expected only KANLinear layers, got a Linear"),
        (
            lambda net: setattr(net.layers[1], "base_activation", nn.Tanh()),
            "base_activation: expected the same in every layer",
        ),
        (
            lambda net: setattr(net.layers[0], "spline_order", 0),
            "spline_order: expected at least 1, the smallest in pykan, got 0",
        ),
    ],
)
def test_what_pykan_cannot_hold_is_refused(change, message):
    net = kk.KAN([2, 3, 1])
    change(net)
    with pytest.raises(ValueError, match=message):
        net.to_pykan()


def test_without_pykan(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "kan", None)
    with pytest.raises(ImportError, match=r"pykan is not installed \(.*\): pip install kan_kernels\[pykan\]"):
        kk.KAN([2, 3, 1]).to_pykan()
    theirs = {f"act_fun.0.{name}": value for name, value in _pykan_layer().items()}
    assert kk.KAN.from_pykan(theirs)(torch.zeros(4, 2)).shape == (4, 3)


def _pykan_layer():
    knots = torch.arange(12.0).repeat(2, 1)
    return {"grid": knots, "coef": torch.zeros(2, 3, 8)} | {
        name: torch.ones(2, 3) for name in ("mask", "scale_base", "scale_sp")
    }


LAYER = peer_layers.KAN([3, 2]).state_dict()
REFUSED_OF_EFFICIENT_KAN = {
    "no state": (lambda: [1], TypeError, "expected efficient-kan's KAN or its state_dict, got list"),
    "other keys": (lambda: {"weight": torch.zeros(2)}, ValueError, r"expected keys layers.0.\*, layers.1.\*, ..., got"),
    "a gap": (lambda: {k.replace("0", "1"): v for k, v in LAYER.items()}, ValueError, r"expected keys layers.0.\*"),
    "more keys": (
        lambda: LAYER | {"head.weight": torch.zeros(2)},
        ValueError,
        r"only efficient-kan's keys layers.\*, got \['head.weight'\]",
    ),
    "a missing key": (lambda: without(LAYER, "layers.0.grid"), ValueError, "expected a key layers.0.grid, got"),
    "a rank": (
        lambda: LAYER | {"layers.0.grid": torch.zeros(3)},
        ValueError,
        r"expected 2 dimensions of layers.0.grid, got shape \(3,\)",
    ),
    "knots": (
        lambda: LAYER | {"layers.0.grid": torch.zeros(3, 4)},
        ValueError,
        r"expected G\+K bases and G\+2K\+1 knots, got layers.0.spline_weight \(2, 3, 8\), layers.0.grid \(3, 4\)",
    ),
    "equal knots": (lambda: LAYER | {"layers.0.grid": torch.zeros(3, 12)}, ValueError, "expected strictly increasing knots"),
    "a scaler of another shape": (
        lambda: LAYER | {"layers.0.spline_scaler": torch.ones(3, 2)},
        ValueError,
        r"expected shape \(2, 3\) of layers.0.spline_scaler for layers.0.spline_weight \(2, 3, 8\), got \(3, 2\)",
    ),
    "a sparse scaler": (
        lambda: LAYER | {"layers.0.spline_scaler": torch.ones(2, 3).to_sparse()},
        TypeError,
        r"source\['layers.0.spline_scaler'\]: expected a dense tensor, got torch.sparse_coo",
    ),
    "an integer scaler": (
        lambda: LAYER | {"layers.0.spline_scaler": torch.ones(2, 3, dtype=torch.int64)},
        TypeError,
        r"source\['layers.0.spline_scaler'\]: expected a floating-point dtype of 16, 32 or 64 bits, got int64",
    ),
    "no values": (
        lambda: LAYER | {"layers.0.spline_weight": torch.zeros(2, 3, 8, device="meta")},
        ValueError,
        "expected values of layers.0.spline_weight, got a tensor on the meta device",
    ),
    "a key that is no text": (
        lambda: LAYER | {3: torch.zeros(2)},
        ValueError,
        r"only efficient-kan's keys layers.\*, got \[3\]",
    ),
    "layers that do not fit": (
        lambda: LAYER | {k.replace("0", "1"): v for k, v in peer_layers.KAN([5, 1]).state_dict().items()},
        ValueError,
        r"expected layers.1 to have 2 in_features, the out_features of the layer before it, got 5",
    ),
}


@pytest.mark.parametrize("which", REFUSED_OF_EFFICIENT_KAN)
def test_what_is_not_efficient_kans_is_refused(which):
    make, error, message = REFUSED_OF_EFFICIENT_KAN[which]
    with pytest.raises(error, match=message):
        kk.KAN.from_efficient_kan(make())


def test_pykans_is_not_mistaken_for_it():
    assert isinstance(network(), kan.MultKAN)
    with pytest.raises(ValueError, match=r"expected keys layers.0.\*"):
        kk.KAN.from_efficient_kan(network())
