"""`accelerate` and `restore`: efficient-kan's layers wherever they are, and what only looks like them."""

import copy
import logging
import pickle
import re

import peer_layers
import pytest
import torch
from torch import nn

import kan_kernels as kk
from kan_kernels import fallbacks

POINTS = torch.cat([torch.linspace(-2.5, 2.5, 61), torch.tensor([-1.0, 1.0])]).double()


@pytest.fixture(autouse=True)
def first_time(monkeypatch):
    """A fallback is logged once: every test is the first."""
    monkeypatch.setattr(fallbacks, "_seen", {})


def rows(inputs, seed=0):
    order = torch.rand(inputs, len(POINTS), generator=torch.Generator().manual_seed(seed)).argsort(1)
    return POINTS[order].t().contiguous()


def numbers(model, x):
    """The output and every gradient, of x first."""
    x = x.clone().requires_grad_()
    y = model(x)
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    return [y, *torch.autograd.grad(y.sin().sum(), leaves)]


def assert_same(ours, theirs, rtol=1e-10):
    for value, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("activation", [nn.SiLU, nn.Identity, nn.Tanh, nn.PReLU])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(("grid_size", "order"), [(5, 3), (1, 0), (7, 2), (4, 1)])
def test_the_same_numbers_and_gradients(activation, scaled, grid_size, order):
    net = peer_layers.KAN([3, 7, 1], grid_size=grid_size, spline_order=order, scaled=scaled, activation=activation).double()
    x = rows(3)
    before = numbers(net, x)
    assert kk.accelerate(net) is net
    assert all(type(layer).forward is not peer_layers.KANLinear.forward for layer in net.layers)
    assert_same(numbers(net, x), before)


def test_parameters_keys_hooks_and_optimizer_are_what_they_were():
    net = peer_layers.KAN([3, 5, 2])
    twin = copy.deepcopy(net)
    parameters, keys = list(net.parameters()), list(net.state_dict())
    optimizers = [torch.optim.Adam(n.parameters(), lr=0.01, weight_decay=0.1) for n in (net, twin)]
    seen = []
    net.layers[1].register_forward_hook(lambda *_: seen.append("layer"))
    net.register_forward_hook(lambda *_: seen.append("net"))
    x = rows(3).float()
    for step in range(4):
        if step == 2:
            kk.accelerate(net)
        for n, optimizer in zip((net, twin), optimizers, strict=True):
            optimizer.zero_grad()
            n(x).square().mean().backward()
            optimizer.step()
    assert seen == ["layer", "net"] * 4
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert list(net.state_dict()) == keys
    assert_same(net.parameters(), twin.parameters(), rtol=1e-5)
    assert isinstance(net.layers[0], peer_layers.KANLinear)
    net.load_state_dict(twin.state_dict())
    torch.testing.assert_close(net(x), twin(x))


def test_restore_gives_the_class_back():
    net = nn.Sequential(peer_layers.KANLinear(2, 3), nn.Linear(3, 3), peer_layers.KANLinear(3, 1))
    x = rows(2).float()
    before = net(x)
    kk.accelerate(net)
    assert kk.restore(net) is net
    assert [type(layer) for layer in net] == [peer_layers.KANLinear, nn.Linear, peer_layers.KANLinear]
    assert torch.equal(net(x), before)
    assert kk.restore(net) is net


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copied", "pickled"])
def test_copies_are_accelerated_too(duplicate):
    net = kk.accelerate(peer_layers.KAN([3, 4, 2]))
    x = rows(3).float()
    twin = duplicate(net)
    assert type(twin.layers[0]) is type(net.layers[0])
    assert torch.equal(twin(x), net(x))
    assert type(kk.restore(twin).layers[0]) is peer_layers.KANLinear


def test_twice_is_once():
    net = kk.accelerate(peer_layers.KAN([2, 3, 1]))
    kinds = [type(layer) for layer in net.layers]
    kk.accelerate(net)
    assert [type(layer) for layer in net.layers] == kinds


@pytest.mark.parametrize("scaled", [True, False])
def test_a_grid_update_keeps_the_function(scaled):
    """As `KANLinear.update_grid` does; efficient-kan's own refit changes the function wherever there is a scaler."""
    layer = kk.accelerate(peer_layers.KANLinear(3, 4, scaled=scaled).double())
    ours = kk.KANLinear(3, 4, enable_standalone_scale_spline=scaled, dtype=torch.float64)
    ours.load_state_dict(layer.state_dict())
    x = rows(3)
    parameters = list(layer.parameters())
    layer.update_grid(x, 0.02)
    ours.update_grid(x, 0.02)
    theirs = layer.state_dict()
    assert_same([theirs[name] for name in ours.state_dict()], ours.state_dict().values())
    assert all(a is b for a, b in zip(parameters, layer.parameters(), strict=True))
    with pytest.raises(ValueError, match="x: expected 3 features"):
        layer.update_grid(x[:, :2])
    with pytest.raises(ValueError, match=r"margin: expected a finite number in \[0.0, inf\], got -1"):
        layer.update_grid(x, margin=-1)


def changed(forward):
    """The layer as somebody's file has it who changed its forward."""
    methods = {name: value for name, value in vars(peer_layers.KANLinear).items() if name not in ("__dict__", "__weakref__")}
    return type("Changed", (nn.Module,), methods | {"forward": forward})(3, 2)


own_forward = peer_layers.KANLinear.forward


class Overriding(peer_layers.KANLinear):
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x)


class Biased(peer_layers.KANLinear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.bias = nn.Parameter(torch.zeros(sizes[1]))


def failing(self, x):
    raise RuntimeError("out of order")


class FastKANLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.rbf = type("RadialBasisFunction", (nn.Module,), {})()


class ChebyKANLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(3, 2, 4))


def frozen_knots():
    layer = peer_layers.KANLinear(3, 2)
    layer.grid[:, 4] = layer.grid[:, 5]
    layer.grid[:] = layer.grid[:, 5:6]
    return layer


def renamed(**changes):
    layer = peer_layers.KANLinear(3, 2)
    for name, value in changes.items():
        setattr(layer, name, value)
    return layer


LEFT = {
    "a bias of 1e-4": (lambda: changed(lambda self, x: own_forward(self, x) + 1e-4), "its forward computes something else"),
    "dropout": (
        lambda: changed(lambda self, x: nn.functional.dropout(own_forward(self, x), 0.5, self.training)),
        "its forward computes something else",
    ),
    "only in evaluation": (
        lambda: changed(lambda self, x: own_forward(self, x) if self.training else own_forward(self, x).softmax(-1)),
        "its forward computes something else",
    ),
    "a clamp": (lambda: changed(lambda self, x: own_forward(self, x.clamp(-50, 50))), "its forward computes something else"),
    "no NaN": (lambda: changed(lambda self, x: own_forward(self, x.nan_to_num())), "its forward computes something else"),
    "another parameter": (lambda: Biased(3, 2), r"it holds \['base_weight', 'bias', 'grid', 'spline_weight'\]"),
    "an error": (lambda: changed(failing), "its forward cannot be compared: RuntimeError: out of order"),
    "another shape": (
        lambda: changed(lambda self, x: torch.cat([own_forward(self, x)] * 2, -1)),
        r"its forward gives shape \(17, 4\) where the fused one gives \(17, 2\)",
    ),
    "more arguments": (
        lambda: changed(lambda self, x, scale=1.0: own_forward(self, x) * scale),
        r"its forward takes \(x, scale\), not \(x\)",
    ),
    "an overridden forward": (lambda: Overriding(3, 2), "Overriding overrides the forward of KANLinear"),
    "a replaced forward": (lambda: renamed(forward=torch.sin), "its forward was replaced on the instance"),
    "equal knots": (frozen_knots, "its own forward gives nothing to compare"),
    "a wrong degree": (lambda: renamed(spline_order=2), "the shapes do not fit"),
    "a missing scaler": (lambda: renamed(enable_standalone_scale_spline=False), "spline_scaler says otherwise"),
    "no grid_eps": (lambda: _without("grid_eps"), "it has no grid_eps"),
    "no flag": (lambda: _without("enable_standalone_scale_spline"), "it has no enable_standalone_scale_spline"),
    "a function": (lambda: _with_a_function(), "its base_activation is no module"),
    "TorchScript": (lambda: torch.jit.trace(peer_layers.KANLinear(3, 2), torch.zeros(1, 3)), "compiled by TorchScript"),
    "fast-kan": (FastKANLayer, "radial basis functions are another family"),
    "unknown": (ChebyKANLayer, "an unknown kind of KAN layer"),
}


def _without(name):
    layer = peer_layers.KANLinear(3, 2)
    delattr(layer, name)
    return layer


def _with_a_function():
    layer = peer_layers.KANLinear(3, 2)
    del layer.base_activation
    layer.base_activation = torch.sin
    return layer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", LEFT)
def test_look_alikes_are_left_alone_and_why_is_said(which, capsys, caplog):
    make, reason = LEFT[which]
    net = nn.ModuleDict({"first": make(), "second": peer_layers.KANLinear(2, 2), "third": nn.Linear(2, 2)})
    kind = type(net["first"])
    with caplog.at_level(logging.WARNING, "kan_kernels"):
        kk.accelerate(net, verbose=True)
    assert type(net["first"]) is kind
    assert type(net["second"]) is not peer_layers.KANLinear
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"first, {kind.__name__}: left, ")
    assert re.search(reason, first)
    assert second == "second, KANLinear: on the kernels"
    assert any("accelerate left first" in message for message in caplog.messages)
    assert any(what.startswith("accelerate left first") for what in kk.info().fallbacks)


class OwnUpdate(peer_layers.KANLinear):
    def update_grid(self, x, margin=0.01):
        self.updated = True


def test_a_users_override_stays_the_users():
    layer = kk.accelerate(OwnUpdate(3, 2))
    assert type(layer) is not OwnUpdate
    layer.update_grid(torch.zeros(4, 3))
    assert layer.updated


def test_probing_draws_no_random_numbers_and_calls_no_hooks():
    layers = [changed(lambda self, x: nn.functional.dropout(own_forward(self, x), 0.5)), peer_layers.KANLinear(3, 2)]
    for layer in layers:
        layer.register_forward_hook(lambda *_: pytest.fail("the probe called a hook"))
        layer.base_activation.register_forward_pre_hook(lambda *_: pytest.fail("the probe called a hook"))
    state = torch.get_rng_state()
    kk.accelerate(nn.ModuleList(layers))
    assert torch.equal(torch.get_rng_state(), state)
    assert type(layers[1]) is not peer_layers.KANLinear


def test_restore_leaves_what_another_has_exchanged_since():
    layer = kk.accelerate(peer_layers.KANLinear(3, 2))
    nn.utils.parametrizations.weight_norm(layer, "base_weight")
    x = rows(3).float()
    y = layer(x)
    kk.restore(layer)
    assert torch.equal(layer(x), y)
    assert any(what.startswith("restore left a KANLinear") for what in kk.info().fallbacks)


def test_two_reasons_are_two(caplog):
    with caplog.at_level(logging.WARNING, "kan_kernels"):
        for _ in range(2):
            kk.accelerate(renamed(spline_order=2))
        kk.accelerate(renamed(grid_size=2))
        kk.accelerate(renamed(enable_standalone_scale_spline=False))
    assert len(caplog.messages) == 3


def test_nothing_to_accelerate(capsys):
    kk.accelerate(nn.Linear(2, 2), verbose=True)
    assert capsys.readouterr().out == "no KAN layers in this model\n"
    kk.accelerate(nn.Linear(2, 2))
    assert kk.info().fallbacks == {"accelerate left Linear": "no KAN layers in this model"}
    kk.accelerate(kk.KAN([2, 3, 1]), verbose=True)
    assert "layers.0, KANLinear: on the kernels" in capsys.readouterr().out


@pytest.mark.parametrize("function", [kk.accelerate, kk.restore])
def test_not_a_module(function):
    with pytest.raises(TypeError, match=r"model: expected an nn.Module, got list"):
        function([nn.Linear(2, 2)])


def test_compiled_after_it():
    net = kk.accelerate(peer_layers.KAN([3, 4, 2]))
    x = rows(3).float()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert_same(numbers(compiled, x), numbers(net, x), rtol=1e-5)
