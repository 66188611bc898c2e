"""`accelerate` and `restore` of efficient-kan's layers in any model, and of layers that only look like them."""

import contextlib
import copy
import io
import logging
import pickle
import random
import re

import numpy
import peer_layers
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

import kan_kernels as kk
from kan_kernels import backends
from kan_kernels.interop import class_swap, equivalence

POINTS = torch.cat([torch.linspace(-2.5, 2.5, 61), torch.tensor([-1.0, 1.0])]).double()


@pytest.fixture(autouse=True)
def first_time(monkeypatch):
    """Clear the recorded fallbacks, because every fallback is logged only once."""
    monkeypatch.setattr(backends, "_fallbacks", {})


def rows(inputs, seed=0):
    order = torch.rand(inputs, len(POINTS), generator=torch.Generator().manual_seed(seed)).argsort(1)
    return POINTS[order].t().contiguous()


def numbers(model, x):
    """Return the output, the gradient of x and the gradients of the parameters."""
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
    """update_grid equals `KANLinear.update_grid`.

    efficient-kan's own update changes the function if there is a spline_scaler.
    """
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
    with pytest.raises(ValueError, match=r"margin: expected a finite number >= 0.0, got -1"):
        layer.update_grid(x, margin=-1)


def changed(forward, inputs=3, outputs=2):
    """Return a layer of a copied class whose forward was changed."""
    methods = {name: value for name, value in vars(peer_layers.KANLinear).items() if name not in ("__dict__", "__weakref__")}
    return type("Changed", (nn.Module,), methods | {"forward": forward})(inputs, outputs)


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


class SplineLayer(ChebyKANLayer):
    def __init__(self):
        super().__init__()
        self.register_buffer("grid", torch.zeros(3, 9))


def frozen_knots():
    layer = peer_layers.KANLinear(3, 2)
    layer.grid[:] = layer.grid[:, 5:6]
    return layer


def renamed(**changes):
    layer = peer_layers.KANLinear(3, 2)
    for name, value in changes.items():
        setattr(layer, name, value)
    return layer


LEFT = {
    "a bias of 1e-4": (lambda: changed(lambda self, x: own_forward(self, x) + 1e-4), "computes a different function"),
    "dropout": (
        lambda: changed(lambda self, x: nn.functional.dropout(own_forward(self, x), 0.5, self.training)),
        "computes a different function",
    ),
    "only in evaluation": (
        lambda: changed(lambda self, x: own_forward(self, x) if self.training else own_forward(self, x).softmax(-1)),
        "computes a different function",
    ),
    "a clamp": (lambda: changed(lambda self, x: own_forward(self, x.clamp(-50, 50))), "computes a different function"),
    "no NaN": (lambda: changed(lambda self, x: own_forward(self, x.nan_to_num())), "computes a different function"),
    "another parameter": (lambda: Biased(3, 2), r"buffers are \['base_weight', 'bias', 'grid', 'spline_weight'\]"),
    "an error": (lambda: changed(failing), "its forward cannot be compared: RuntimeError: out of order"),
    "another shape": (
        lambda: changed(lambda self, x: torch.cat([own_forward(self, x)] * 2, -1)),
        r"its forward returns shape \(17, 4\), the fused forward \(17, 2\)",
    ),
    "more arguments": (
        lambda: changed(lambda self, x, scale=1.0: own_forward(self, x) * scale),
        r"its forward takes \(x, scale\), not \(x\)",
    ),
    "an overridden forward": (lambda: Overriding(3, 2), "Overriding overrides the forward of KANLinear"),
    "a replaced forward": (lambda: renamed(forward=torch.sin), "its forward was replaced on the instance"),
    "equal knots": (frozen_knots, "its forward returns no finite nonzero values"),
    "a wrong degree": (lambda: renamed(spline_order=2), "the shapes do not fit"),
    "a missing scaler": (lambda: renamed(enable_standalone_scale_spline=False), "contradicts its spline_scaler"),
    "no grid_eps": (lambda: _without("grid_eps"), "it has no grid_eps"),
    "no flag, which it reads": (
        lambda: _without("enable_standalone_scale_spline"),
        "its forward cannot be compared: AttributeError: .* no attribute 'enable_standalone_scale_spline'",
    ),
    "groups": (peer_layers.Grouped, r"its base_weight has shape \(2, 2, 3\), not 2 dimensions"),
    "a flat spline_weight": (
        lambda: _with_tensors(spline_weight=nn.Parameter(torch.zeros(2, 24))),
        r"its spline_weight has shape \(2, 24\), not 3 dimensions",
    ),
    "one row of knots": (lambda: _with_tensors(grid=torch.arange(12.0)), r"its grid has shape \(12,\), not 2 dimensions"),
    "too few knots": (lambda: _with_tensors(grid=torch.zeros(3, 4)), "the shapes do not fit"),
    "no degree": (lambda: renamed(spline_order=None), "the shapes do not fit: .* spline_order = None"),
    "a degree in words": (lambda: renamed(spline_order="3"), "the shapes do not fit: .* spline_order = '3'"),
    "a lazy parameter": (
        lambda: _with_tensors(spline_weight=nn.UninitializedParameter()),
        "its spline_weight is not initialized yet",
    ),
    "the meta device": (lambda: peer_layers.KANLinear(3, 2).to("meta"), "on the meta device and has no values"),
    "integers": (
        lambda: _with_tensors(spline_weight=nn.Parameter(torch.zeros(2, 3, 8, dtype=torch.int8), requires_grad=False)),
        "its spline_weight has dtype torch.int8",
    ),
    "a trained grid": (lambda: _with_tensors(grid=nn.Parameter(peer_layers.KANLinear(3, 2).grid)), "its grid is trained"),
    "an attribute that raises": (lambda: Raising(3, 2), "it cannot be examined: RuntimeError: no order today"),
    "a gradient of its own": (
        lambda: changed(lambda self, x: own_forward(self, x.detach() + 0 * x)),
        "computes a different function",
    ),
    "a function": (lambda: _with_a_function(), "its base_activation is not a module"),
    "TorchScript": (lambda: torch.jit.trace(peer_layers.KANLinear(3, 2), torch.zeros(1, 3)), "compiled by TorchScript"),
    "fast-kan": (FastKANLayer, "fast-kan uses radial basis functions"),
    "unknown": (SplineLayer, r"an unknown kind of KAN layer with parameters and buffers \['coefficients', 'grid'\]"),
}


class Raising(peer_layers.KANLinear):
    @property
    def spline_order(self):
        raise RuntimeError("no order\ntoday")

    @spline_order.setter
    def spline_order(self, value):
        pass


def _with_tensors(**tensors):
    layer = peer_layers.KANLinear(3, 2)
    for name, tensor in tensors.items():
        delattr(layer, name)
        if isinstance(tensor, nn.Parameter):
            layer.register_parameter(name, tensor)
        else:
            layer.register_buffer(name, tensor)
    return layer


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
    assert first.startswith(f"first, {kind.__name__}: unchanged, ")
    assert re.search(reason, first)
    assert second == "second, KANLinear: runs on the kernels"
    assert any("accelerate did not change first" in message for message in caplog.messages)
    assert any(what.startswith("accelerate did not change first") for what in kk.info().fallbacks)


def test_a_name_with_kan_in_it_is_no_reason(capsys):
    kk.accelerate(ChebyKANLayer(), verbose=True)
    assert capsys.readouterr().out == "no KAN layers in this model\n"


def assert_accelerated(layer, x):
    """Check that the accelerated layer and its copies compute the same values, and that `restore` restores the class."""
    kind = type(layer)
    before = numbers(layer, x)
    assert kk.accelerate(layer) is layer
    assert type(layer) is not kind
    assert isinstance(layer, kind)
    for same in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same(numbers(same, x), before)
    assert type(kk.restore(layer)) is kind
    kk.accelerate(layer)


def test_a_copy_without_update_grid_is_accelerated():
    layer = peer_layers.WithoutUpdateGrid(3, 2).double()
    assert_accelerated(layer, rows(3))
    assert not hasattr(layer, "update_grid")
    assert not hasattr(type(layer), "update_grid")


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("sizes", [(3, 2), (7, 5)])
@pytest.mark.parametrize("cls", [peer_layers.Rewritten, peer_layers.RewrittenWithoutActivation])
def test_a_layer_rewritten_with_its_activation_in_the_text_is_accelerated(cls, sizes, scaled):
    assert_accelerated(cls(*sizes, scaled=scaled).double(), rows(sizes[0]))


class WithMethods(peer_layers.KANLinear):
    """A subclass that adds methods."""

    def frozen(self):
        return self.requires_grad_(False)

    def regularization(self):
        return self.spline_weight.abs().mean()


def test_a_subclass_that_only_adds_methods_is_accelerated():
    layer = WithMethods(3, 2).double()
    assert_accelerated(layer, rows(3))
    assert layer.frozen().regularization() > 0


@pytest.mark.parametrize("zero", [("spline_weight",), ("base_weight", "spline_weight", "spline_scaler")])
def test_a_layer_that_starts_at_zero_is_accelerated(zero):
    layer = peer_layers.KANLinear(3, 2).double()
    with torch.no_grad():
        for name in zero:
            getattr(layer, name).zero_()
    assert_accelerated(layer, rows(3))


@pytest.mark.parametrize("sizes", [(1, 1), (5, 1), (1, 6), (40, 30)])
def test_layers_of_any_width_are_accelerated(sizes):
    assert_accelerated(peer_layers.KANLinear(*sizes).double(), rows(sizes[0]))


def test_a_look_alike_is_found_out_by_a_copy_of_a_few_edges():
    layers = [changed(lambda self, x: own_forward(self, x) + 1e-4), peer_layers.KANLinear(3, 2)]
    wide = changed(lambda self, x: own_forward(self, x) + 1e-4, 40, 30)
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.zero_()
    kk.accelerate(nn.ModuleList([*layers, wide]))
    assert [type(layer).__name__ for layer in (*layers, wide)] == ["Changed", "FusedKANLinear", "Changed"]


def test_knots_that_are_equal_in_one_of_many_features():
    """The layer is left unchanged, because efficient-kan's forward is NaN everywhere and the fused forward is not."""
    layer = peer_layers.KANLinear(40, 3)
    layer.grid[17] = 0.5
    kk.accelerate(layer)
    assert type(layer) is peer_layers.KANLinear


def test_an_attribute_of_a_class_that_a_forward_reads_is_a_reason():
    layer = changed(lambda self, x: own_forward(self, x) * self.factor)
    type(layer).factor = 1.0
    kk.accelerate(layer)
    assert type(layer).__name__ == "Changed"
    assert "its forward reads its attribute factor" in str(kk.info().fallbacks)


def test_sizes_under_other_names_are_no_reason():
    def checking(self, x):
        assert x.shape[1] == self.input_dim
        return own_forward(self, x).view(-1, self.output_dim)

    layer = changed(checking)
    layer.input_dim, layer.output_dim = 3, 2
    assert type(kk.accelerate(layer)).__name__ == "FusedChanged"


def adding_x_if_square(self, x):
    y = own_forward(self, x)
    return y + x if self.in_features == self.out_features else y


def of_wide_layers(self, x):
    return own_forward(self, x.clamp(-1, 1) if self.in_features > 20 else x)


def clamping_one_feature(self, x):
    inner = [x[:, i : i + 1].clamp(-1, 1) if i == 17 else x[:, i : i + 1] for i in range(x.shape[1])]
    return own_forward(self, torch.cat(inner, 1))


def detached_if_square(self, x):
    return own_forward(self, x.detach() if self.in_features == self.out_features else x)


def twice_if_wide_and_training(self, x):
    return own_forward(self, x) * (2 if self.training and self.in_features > 32 else 1)


@pytest.mark.parametrize(
    ("forward", "widths", "left"),
    [
        (adding_x_if_square, [(3, 3), (3, 2), (8, 8), (60, 60), (61, 60)], [0, 2, 3]),
        (adding_x_if_square, [(3, 8), (8, 8), (8, 2)], [1]),
        (of_wide_layers, [(20, 3), (21, 3), (40, 80)], [1, 2]),
        (clamping_one_feature, [(17, 3), (18, 3), (40, 80)], [1, 2]),
        (
            lambda self, x: own_forward(self, x) + 0.02 * (self.in_features == self.out_features),
            [(4, 3), (3, 3), (64, 64)],
            [1, 2],
        ),
        (detached_if_square, [(4, 3), (3, 3), (64, 64)], [1, 2]),
        (twice_if_wide_and_training, [(32, 3), (33, 3), (64, 64)], [1, 2]),
    ],
    ids=["square", "square beside others", "wide", "one feature", "a small bias", "gradients alone", "training alone"],
)
def test_a_forward_that_depends_on_the_sizes_is_compared_at_every_size(forward, widths, left):
    layers = nn.ModuleList(changed(forward, *sizes) for sizes in widths)
    for layer in layers[1:]:
        layer.__class__ = type(layers[0])
    kk.accelerate(layers)
    assert [i for i, layer in enumerate(layers) if type(layer).__name__ == "Changed"] == left


def with_part(**parts):
    def make(forward):
        layer = changed(forward)
        for name, value in parts.items():
            setattr(layer, name, value)
        return layer

    return make


CHANGEABLE = {
    "a number": (with_part(temperature=1.0), lambda self, x: own_forward(self, x / self.temperature), "attribute temperature"),
    "a flag": (with_part(add=False), lambda self, x: own_forward(self, x) + (x[:, :2] if self.add else 0), "attribute add"),
    "a word": (with_part(mode="a"), lambda self, x: own_forward(self, x) * (1 if self.mode == "a" else 2), "attribute mode"),
    "nothing": (
        with_part(scale=None),
        lambda self, x: own_forward(self, x if self.scale is None else x * self.scale),
        "attribute scale",
    ),
    "a word that few values match": (
        with_part(mode="plain"),
        lambda self, x: own_forward(self, x.tanh() if self.mode == "squashed" else x),
        "attribute mode",
    ),
    "a number that few values match": (
        with_part(order=1),
        lambda self, x: own_forward(self, x**2 if self.order == 17 else x),
        "attribute order",
    ),
    "a list": (with_part(shifts=[0.0]), lambda self, x: own_forward(self, x) + sum(self.shifts), "attribute shifts"),
    "a tensor": (with_part(gain=torch.ones(())), lambda self, x: own_forward(self, x) * self.gain, "attribute gain"),
    "an attribute of the peer's constructor": (
        with_part(scale_base=1.0),
        lambda self, x: own_forward(self, x) * self.scale_base,
        "attribute scale_base",
    ),
    "dropout": (with_part(drop=nn.Dropout(0.0)), lambda self, x: self.drop(own_forward(self, x)), "submodule drop"),
    "the probability of a dropout": (
        with_part(p=0.0),
        lambda self, x: nn.functional.dropout(own_forward(self, x), self.p, self.training),
        "attribute p",
    ),
    "a place for a module": (
        with_part(post=nn.Identity()),
        lambda self, x: self.post(own_forward(self, x)),
        "submodule post",
    ),
    "an attribute that is not there": (
        with_part(),
        lambda self, x: own_forward(self, x) * getattr(self, "factor", 1.0),
        "attribute factor",
    ),
}


@pytest.mark.parametrize(("make", "forward", "part"), CHANGEABLE.values(), ids=CHANGEABLE)
def test_a_part_that_has_no_effect_yet_is_a_reason(make, forward, part):
    """The fused forward would ignore changes of such a part, for example of a temperature of 1 or of a dropout of 0."""
    layer = kk.accelerate(make(forward))
    assert type(layer).__name__ == "Changed"
    assert not any(child._forward_pre_hooks for child in layer.modules())
    assert f"its forward reads its {part}, whose changes the fused forward would ignore" in str(kk.info().fallbacks)


def setting_an_attribute(self, x):
    y = own_forward(self, x)
    self.penalty = y.abs().mean()
    return y


def test_a_forward_that_sets_an_attribute_is_left_alone():
    layer = kk.accelerate(changed(setting_an_attribute))
    assert type(layer).__name__ == "Changed"
    assert "it sets its attribute penalty, which the fused forward does not" in str(kk.info().fallbacks)


def test_probing_changes_neither_parameters_nor_random_states():
    def clamping_its_weight(self, x):
        self.spline_weight.data.clamp_(-5, 5)
        self.grid.clamp_(-2, 2)
        random.random()
        numpy.random.random()
        return own_forward(self, x)

    layers = nn.ModuleList([changed(clamping_its_weight), changed(clamping_its_weight, 400, 400)]).double()
    for layer in layers:
        layer.spline_weight.data[0, 0, 0] = 7.0
    state, of_numpy = random.getstate(), numpy.random.get_state()[1].tolist()
    kk.accelerate(layers)
    assert [layer.spline_weight[0, 0, 0].item() for layer in layers] == [7.0, 7.0]
    assert all(layer.grid.max() > 2.1 for layer in layers)
    assert random.getstate() == state
    assert numpy.random.get_state()[1].tolist() == of_numpy


def test_a_default_device_does_not_matter():
    layer = peer_layers.KANLinear(3, 2).double()
    with torch.device("meta"):
        kk.accelerate(layer)
    assert type(layer).__name__ == "FusedKANLinear"


def test_a_wide_layer_of_any_dtype_with_an_activation_that_has_parameters(monkeypatch):
    monkeypatch.setattr(equivalence, "_SMALL", 100)
    for dtype in (torch.float32, torch.bfloat16):
        layer = peer_layers.KANLinear(40, 30, activation=nn.PReLU).to(dtype)
        assert type(kk.accelerate(layer)) is not peer_layers.KANLinear


def test_parts_that_a_forward_does_not_read_are_no_reason():
    layer = with_part(name="first", seed=3, widths=[3, 2], scale=None, drop=nn.Dropout(0.0), act=nn.SiLU())(own_forward)
    assert type(kk.accelerate(layer)).__name__ == "FusedChanged"


def test_all_or_nothing(monkeypatch):
    """If the exchange of one class raises, no class is exchanged."""
    net = peer_layers.KAN([2, 3, 1])
    exchange, calls = class_swap.fuse, []

    def failing_at_the_second(module, mixin):
        calls.append(module)
        if len(calls) == 2:
            raise KeyboardInterrupt
        exchange(module, mixin)

    monkeypatch.setattr(class_swap, "fuse", failing_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        kk.accelerate(net)
    assert len(calls) == 2
    assert [type(layer) for layer in net.layers] == [peer_layers.KANLinear] * 2


def test_knots_that_are_trained_later_have_gradients():
    gradients = []
    for layer in (peer_layers.KANLinear(3, 2).double(), kk.accelerate(peer_layers.KANLinear(3, 2).double())):
        layer.grid.requires_grad_()
        gradients.append(torch.autograd.grad(layer(rows(3)).sin().sum(), [layer.grid, layer.spline_weight]))
    assert gradients[0][0].any()
    assert_same(*gradients)
    assert kk.info().fallbacks == {"a KANLinear runs its own forward": "its grid is trained"}


@pytest.mark.parametrize(
    "mode",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference", "autocast"],
)
def test_in_any_mode(mode):
    layer = peer_layers.KANLinear(3, 2)
    with mode():
        kk.accelerate(layer)
    assert type(layer) is not peer_layers.KANLinear


def test_probing_leaves_the_module_as_it_is():
    """Probing changes no training modes, gradients or lists. A forward that appends to a list is left unchanged."""

    def counting(self, x):
        self.calls.append(len(x))
        return own_forward(self, x)

    layer = changed(counting)
    layer.calls = []
    layer.base_activation.train(False)
    kk.accelerate(layer)
    assert type(layer).__name__ == "Changed"
    assert (layer.calls, layer.training, layer.base_activation.training) == ([], True, False)
    assert all(parameter.grad is None for parameter in layer.parameters())


class Operations(TorchDispatchMode):
    """Count the operators, and record the size in bytes of the largest result that is not a view."""

    count = largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += 1
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor) and not (result.is_inference() or function.is_view):
            self.largest = max(self.largest, result.nbytes)
        return result


def test_accelerating_is_less_work_than_five_steps():
    """`accelerate` calls fewer operators than five steps do.

    None of them makes a larger tensor than a step of 20 rows in float64 does.
    """
    for widths in ([2, 5, 1], [100, 100, 100, 100, 1]):
        net = peer_layers.KAN(widths)
        wide = copy.deepcopy(net).double()
        with Operations() as of_a_step:
            wide(torch.zeros(20, widths[0], dtype=torch.float64)).sum().backward()
        with Operations() as of_accelerating:
            kk.accelerate(net)
        assert of_accelerating.count < 5 * of_a_step.count
        assert of_accelerating.largest <= max(of_a_step.largest, 4096)


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
    assert any(what.startswith("restore did not change a KANLinear") for what in kk.info().fallbacks)


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
    assert kk.info().fallbacks == {"accelerate did not change Linear": "no KAN layers in this model"}
    kk.accelerate(kk.KAN([2, 3, 1]), verbose=True)
    assert "layers.0, KANLinear: runs on the kernels" in capsys.readouterr().out


@pytest.mark.parametrize("function", [kk.accelerate, kk.restore])
def test_not_a_module(function):
    with pytest.raises(TypeError, match=r"model: expected an nn.Module, got list"):
        function([nn.Linear(2, 2)])


def test_compiled_after_it():
    net = kk.accelerate(peer_layers.KAN([3, 4, 2]))
    x = rows(3).float()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert_same(numbers(compiled, x), numbers(net, x), rtol=1e-5)


BAD = [
    (torch.zeros(4, 3).numpy(), "x: expected a torch.Tensor, got ndarray"),
    ([0.0] * 3, "x: expected a torch.Tensor, got list"),
    (
        torch.zeros(4, 3, dtype=torch.float64),
        r"x: expected float32, the dtype of the layer's parameters, got float64; use layer\.double\(\) or x\.float\(\)",
    ),
    (torch.zeros(4, 3, dtype=torch.int64), "x: expected a floating-point dtype of 16, 32 or 64 bits, got int64"),
]


@pytest.mark.parametrize(("x", "message"), BAD, ids=["numpy", "list", "float64", "int64"])
def test_bad_inputs_get_the_messages_of_a_layer_of_ours(x, message):
    nets = kk.KAN([3, 4, 2]), kk.accelerate(peer_layers.KAN([3, 4, 2]))
    for net in nets:
        with pytest.raises(TypeError, match=message):
            net(x)
    if isinstance(x, torch.Tensor):
        for net in nets:
            with pytest.raises(TypeError, match=message):
                torch.compile(net, backend="aot_eager", fullgraph=True)(x)


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_on_the_base_activation(when):
    layer = peer_layers.KANLinear(3, 2).double()
    if when == "after":
        kk.accelerate(layer)
    layer.base_activation.register_forward_hook(lambda module, args, out: 2 * out)
    before = peer_layers.KANLinear.forward(layer, rows(3))
    torch.testing.assert_close(kk.accelerate(layer)(rows(3)), before, rtol=1e-10, atol=1e-10)


def flattening(self, x):
    return own_forward(self, x.reshape(-1, self.in_features))


def casting(self, x):
    return own_forward(self, x.to(self.base_weight.dtype))


@pytest.mark.parametrize(
    ("forward", "reason"),
    [(flattening, r"its forward returns shape \(4, 2\), the fused forward \(2, 2, 2\)"), (casting, "its forward casts x")],
)
def test_a_forward_for_other_inputs_is_left_alone(forward, reason):
    layer = kk.accelerate(changed(forward))
    assert type(layer).__name__ == "Changed"
    assert re.search(reason, str(kk.info().fallbacks))


def test_an_empty_place_for_a_tensor():
    def centred(self, x):
        return own_forward(self, x if self.mean is None else x - self.mean)

    layer = changed(centred)
    layer.register_buffer("mean", None)
    kk.accelerate(layer)
    assert "its forward reads its attribute mean" in str(kk.info().fallbacks)


@pytest.mark.parametrize("how", ["pruned", "parametrized"])
def test_a_layer_that_is_pruned_before(how):
    """It is left, and the reason says what to do."""
    model = nn.Sequential(peer_layers.KANLinear(3, 2))
    if how == "pruned":
        prune.l1_unstructured(model[0], "spline_weight", 0.5)
    else:
        nn.utils.parametrizations.weight_norm(model[0], "spline_weight")
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        kk.accelerate(model, verbose=True)
    assert "its spline_weight is pruned or parametrized: accelerate first, or remove that" in report.getvalue()
