"""Published code that accesses the parameters of a layer by name works as with a layer of efficient-kan."""

import copy

import peer_layers
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
)
from torch.func import functional_call
from torch.nn.functional import linear, silu
from torch.nn.utils import prune

import kan_kernels as kk

NAMES = ["base_weight", "spline_weight", "spline_scaler"]
SQUARE_AND_NOT = [(5, 5), (3, 7), (7, 1)]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return kk.KAN([3, 5, 2])


@pytest.fixture
def layer(net):
    return net.layers[0]


@pytest.fixture
def x():
    return torch.randn(63, 3, generator=torch.Generator().manual_seed(1))


def step(net, x, optimizer):
    optimizer.zero_grad()
    net(x).square().mean().backward()
    optimizer.step()


def changed(net, before):
    return {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}


def values_of(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def test_names_shapes_and_order_are_efficient_kans(net):
    peer = peer_layers.KAN([3, 5, 2])
    ours = {name: p.shape for name, p in net.named_parameters()}
    assert list(ours.items()) == [(name, p.shape) for name, p in peer.named_parameters()]
    assert list(ours) == [f"layers.{k}.{name}" for k in range(2) for name in NAMES]
    assert [name for name, _ in net.named_buffers()] == ["layers.0.grid", "layers.1.grid"]
    state = net.state_dict()
    assert set(state) == set(peer.state_dict())
    assert list(state) == [f"layers.{k}.{name}" for k in range(2) for name in [*NAMES, "grid"]]
    peer.load_state_dict(state)
    net.load_state_dict(peer.state_dict())


def test_freezing_by_name(net, x):
    before = values_of(net)
    [p.requires_grad_(False) for n, p in net.named_parameters() if "base_weight" in n]
    step(net, x, torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1))
    assert changed(net, before) == {f"layers.{k}.{name}" for k in range(2) for name in ("spline_weight", "spline_scaler")}
    assert all(layer.base_weight.grad is None for layer in net.layers)


def test_learning_rate_groups_by_name(net, x):
    before = values_of(net)
    groups = [
        {"params": [p for n, p in net.named_parameters() if "spline_weight" in n], "lr": 0.1},
        {"params": [p for n, p in net.named_parameters() if "base_weight" in n], "lr": 0.01},
        {"params": [p for n, p in net.named_parameters() if "spline_scaler" in n], "lr": 0.0},
    ]
    step(net, x, torch.optim.SGD(groups))
    for k, layer in enumerate(net.layers):
        for name, rate in (("spline_weight", 0.1), ("base_weight", 0.01), ("spline_scaler", 0.0)):
            parameter = getattr(layer, name)
            assert parameter.grad.any()
            torch.testing.assert_close(parameter.detach(), before[f"layers.{k}.{name}"] - rate * parameter.grad)


def test_an_l1_term_by_name(net):
    penalty = sum(p.abs().sum() for n, p in net.named_parameters() if "spline_weight" in n)
    penalty.backward()
    for layer in net.layers:
        assert torch.equal(layer.spline_weight.grad, layer.spline_weight.detach().sign())
        assert layer.base_weight.grad is None


def test_parameter_counts_by_name(net):
    counts = {name: sum(p.numel() for n, p in net.named_parameters() if name in n) for name in NAMES}
    edges = 3 * 5 + 5 * 2
    assert counts == {"base_weight": edges, "spline_weight": 8 * edges, "spline_scaler": edges}
    assert sum(p.numel() for p in net.parameters()) == 10 * edges


@pytest.mark.parametrize("name", NAMES)
def test_a_hook_on_a_weight_is_called(net, layer, x, name):
    net(x).sum().backward()
    plain = getattr(layer, name).grad.clone()
    net.zero_grad()
    seen = []
    getattr(layer, name).register_hook(lambda g: (seen.append(g.shape), 2 * g)[1])
    net(x).sum().backward()
    assert seen == [getattr(layer, name).shape]
    assert torch.equal(getattr(layer, name).grad, 2 * plain)


def test_every_weight_has_its_gradient_after_backward_contiguous(net, x):
    net(x).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.is_leaf, name
        assert parameter.is_contiguous(), name
        assert parameter.grad.shape == parameter.shape, name
        assert parameter.grad.is_contiguous(), name
        assert parameter.grad.any(), name


def test_weights_are_the_same_object_at_every_access(layer):
    for name in NAMES:
        assert getattr(layer, name) is getattr(layer, name)
        assert isinstance(getattr(layer, name), nn.Parameter)


@pytest.mark.parametrize("name", NAMES)
def test_assigning_data_changes_the_output(net, layer, x, name):
    y = net(x)
    value = torch.randn(getattr(layer, name).shape)
    getattr(layer, name).data = value
    assert getattr(layer, name).data_ptr() == value.data_ptr()
    assert not torch.equal(net(x), y)
    other = kk.KAN([3, 5, 2])
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x), other(x))


@pytest.mark.parametrize("name", NAMES)
def test_assigning_a_parameter_changes_the_output(net, layer, x, name):
    y = net(x)
    value = nn.Parameter(torch.randn(getattr(layer, name).shape))
    setattr(layer, name, value)
    assert any(p is value for p in net.parameters())
    assert [n for n, _ in layer.named_parameters()] == NAMES
    found = net(x)
    assert not torch.equal(found, y)
    found.sum().backward()
    assert value.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_pruning_by_torch(net, layer, x, name):
    prune.l1_unstructured(layer, name, amount=0.4)
    pruned = getattr(layer, name).detach().clone()
    assert int((pruned == 0).sum()) == round(0.4 * pruned.numel())
    y = net(x)
    y.sum().backward()
    assert getattr(layer, f"{name}_orig").grad[pruned != 0].any()
    assert not getattr(layer, f"{name}_orig").grad[pruned == 0].any()
    prune.remove(layer, name)
    assert torch.equal(getattr(layer, name), pruned)
    assert torch.equal(net(x), y)
    other = kk.KAN([3, 5, 2])
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), y)


@pytest.mark.parametrize("name", NAMES)
def test_weight_norm(net, layer, x, name):
    y = net(x)
    nn.utils.parametrizations.weight_norm(layer, name)
    torch.testing.assert_close(net(x), y)
    step(net, x, torch.optim.SGD(net.parameters(), lr=0.1))
    parts = getattr(layer.parametrizations, name)
    assert parts.original0.grad.any()
    assert not torch.allclose(net(x), y)
    y = net(x)
    nn.utils.parametrize.remove_parametrizations(layer, name)
    torch.testing.assert_close(net(x), y)


def test_any_parametrization(net, layer, x):
    class Positive(nn.Module):
        def forward(self, weight):
            return weight.exp()

    weight = layer.base_weight.detach().exp()
    nn.utils.parametrize.register_parametrization(layer, "base_weight", Positive())
    assert torch.equal(layer.base_weight, weight)
    y = layer(x)
    nn.utils.parametrize.remove_parametrizations(layer, "base_weight")
    assert torch.equal(layer.base_weight, weight)
    assert torch.equal(layer(x), y)


def test_clipping_the_gradient_of_one_weight(net, layer, x):
    (100 * net(x).square().sum()).backward()
    others = {name: p.grad.clone() for name, p in net.named_parameters()}
    assert layer.base_weight.grad.norm() > 1
    torch.nn.utils.clip_grad_norm_([layer.base_weight], 1.0)
    torch.testing.assert_close(layer.base_weight.grad.norm(), torch.tensor(1.0))
    for name, p in net.named_parameters():
        assert name == "layers.0.base_weight" or torch.equal(p.grad, others[name])


def test_safetensors_save_file(net, x, tmp_path):
    from safetensors.torch import load_file, save_file

    save_file(net.state_dict(), tmp_path / "net.safetensors")
    saved = load_file(tmp_path / "net.safetensors")
    assert {name: value.shape for name, value in saved.items()} == {n: v.shape for n, v in net.state_dict().items()}
    other = kk.KAN([3, 5, 2])
    other.load_state_dict(saved)
    assert torch.equal(other(x), net(x))


def test_a_state_dict_holds_the_parameters_own_memory(net):
    parameters = dict(net.named_parameters()) | dict(net.named_buffers())
    for name, value in net.state_dict().items():
        assert value.is_contiguous(), name
        assert value.data_ptr() == parameters[name].data_ptr(), name
        assert value.shape == parameters[name].shape, name
        assert parameters[name].is_leaf, name


def test_functional_call_with_a_state_dict(net, x):
    other = kk.KAN([3, 5, 2])
    assert torch.equal(functional_call(other, net.state_dict(), (x,)), net(x))
    doubled = {n: 2 * v if "base_weight" in n else v for n, v in net.state_dict().items()}
    assert not torch.equal(functional_call(net, doubled, (x,)), net(x))


def test_distributed_state_dicts_in_one_process(net, x):
    state = get_model_state_dict(net)
    assert list(state) == list(net.state_dict())
    other = kk.KAN([3, 5, 2])
    result = set_model_state_dict(other, state)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert torch.equal(other(x), net(x))
    [p.requires_grad_(False) for n, p in net.named_parameters() if "base_weight" in n]
    trained = get_model_state_dict(net, options=StateDictOptions(ignore_frozen_params=True))
    assert set(trained) == {name for name in state if "base_weight" not in name}
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad])
    step(net, x, optimizer)
    assert set(get_optimizer_state_dict(net, optimizer)["state"]) == {n for n in trained if "grid" not in n}


def test_a_moving_average_of_the_state_dicts_values(net, x):
    average = copy.deepcopy(net)
    first = {name: value.clone() for name, value in average.state_dict().items()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1.0
        for kept, value in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
            kept.mul_(0.5).add_(value, alpha=0.5)
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, first[name] if "grid" in name else first[name] + 0.5)
    assert average(x).isfinite().all()


def test_copying_into_the_grid(net, layer, x):
    other = kk.KANLinear(3, 5, grid_range=(-3, 3))
    other.load_state_dict({**layer.state_dict(), "grid": other.grid.clone()})
    layer.grid.copy_(other.grid)
    assert torch.equal(layer(x), other(x))
    with torch.no_grad():
        layer.spline_weight.zero_()
        layer.base_weight.copy_(torch.ones(5, 3))
    torch.testing.assert_close(layer(x), silu(x).sum(1, keepdim=True).expand(-1, 5))


def test_writing_into_a_weight_in_place(net, layer, x):
    y = layer(x)
    with torch.no_grad():
        layer.spline_weight[2, 1] = 0
        layer.base_weight[2, 1] = 0
        layer.spline_scaler[4] = 0
        layer.base_weight[4] = 0
    found = layer(x)
    kept = [0, 1, 3]
    assert torch.equal(found[:, kept], y[:, kept])
    assert not found[:, 4].any()
    assert not torch.equal(found[:, 2], y[:, 2])
    assert torch.equal(layer.edge_norms(x)[2, 1], torch.tensor(0.0))


@pytest.mark.parametrize("scaled", [True, False], ids=["scaler", "no scaler"])
@pytest.mark.parametrize("shape", SQUARE_AND_NOT, ids=str)
def test_kan_linear_of_a_layers_weights_is_the_layer(shape, scaled):
    layer = kk.KANLinear(*shape, enable_standalone_scale_spline=scaled)
    x = torch.randn(63, shape[0])
    y = kk.kan_linear(x, layer.spline_weight, layer.grid, layer.base_weight, spline_scaler=layer.spline_scaler)
    assert torch.equal(y, layer(x))
    norms = kk.edge_norms(x, layer.spline_weight, layer.grid, layer.base_weight, spline_scaler=layer.spline_scaler)
    assert norms.shape == (shape[1], shape[0])
    assert torch.equal(norms, layer.edge_norms(x))


def peer_of(layer):
    """Return efficient-kan's layer with the same weights."""
    peer = peer_layers.KANLinear(layer.in_features, layer.out_features, layer.grid_size, layer.spline_order).double()
    peer.load_state_dict(layer.state_dict())
    return peer


@pytest.mark.parametrize("shape", SQUARE_AND_NOT, ids=str)
def test_b_splines_and_scaled_spline_weight(shape):
    """Users of efficient-kan compute their own outputs from these two members."""
    layer = kk.KANLinear(*shape, grid_size=7, spline_order=2, dtype=torch.float64)
    x = torch.randn(63, shape[0], dtype=torch.float64)
    bases = layer.b_splines(x)
    assert bases.shape == (63, shape[0], 9)
    torch.testing.assert_close(bases, peer_of(layer).bases(x), rtol=1e-12, atol=1e-12)
    weight = layer.scaled_spline_weight
    assert torch.equal(weight, layer.spline_weight * layer.spline_scaler.unsqueeze(-1))
    assert weight.is_contiguous()
    y = linear(silu(x), layer.base_weight) + linear(bases.view(63, -1), weight.view(shape[1], -1))
    torch.testing.assert_close(y, layer(x), rtol=1e-11, atol=1e-12)
    (gradient,) = torch.autograd.grad(weight.sum(), layer.spline_scaler)
    torch.testing.assert_close(gradient, layer.spline_weight.detach().sum(-1))
    plain = kk.KANLinear(*shape, enable_standalone_scale_spline=False)
    assert torch.equal(plain.scaled_spline_weight, plain.spline_weight)


@pytest.mark.parametrize("shape", SQUARE_AND_NOT, ids=str)
def test_curve2coeff_inverts_the_edges_values(shape):
    layer = kk.KANLinear(*shape, dtype=torch.float64)
    x = torch.rand(129, shape[0], dtype=torch.float64) * 2 - 1
    y = torch.einsum("nim,oim->nio", layer.b_splines(x), layer.spline_weight.detach())
    weight = layer.curve2coeff(x, y)
    assert weight.shape == layer.spline_weight.shape
    assert weight.is_contiguous()
    torch.testing.assert_close(weight, layer.spline_weight.detach(), rtol=1e-9, atol=1e-10)


def test_curve2coeff_is_the_least_squares_fit():
    layer = kk.KANLinear(2, 3, dtype=torch.float64)
    x = torch.rand(129, 2, dtype=torch.float64) * 2 - 1
    y = torch.randn(129, 2, 3, dtype=torch.float64)
    weight = layer.curve2coeff(x, y)
    for i in range(2):
        best = torch.linalg.lstsq(layer.b_splines(x)[:, i], y[:, i], driver="gelsd").solution
        torch.testing.assert_close(weight[:, i], best.t(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda layer, x: layer.b_splines(x[:, :2]), ValueError, r"x: expected shape \(N, I\) with I = 3, got \(63, 2\)"),
        (lambda layer, x: layer.b_splines(1.0), TypeError, "x: expected a torch.Tensor, got float"),
        (lambda layer, x: layer.curve2coeff(x, x), ValueError, r"y: expected .*\(63, 3, 5\).*got .*\(63, 3\)"),
        (lambda layer, x: layer.curve2coeff(x, torch.zeros(9, 3, 5)), ValueError, r"y: expected .*\(63, 3, 5\)"),
        (lambda layer, x: layer.curve2coeff(x, None), TypeError, "y: expected a torch.Tensor, got NoneType"),
    ],
)
def test_bad_input(layer, x, call, error, message):
    with pytest.raises(error, match=message):
        call(layer, x)


def test_a_published_training_loop(x):
    """The loss decreases with parameter groups, a scheduler, clipping and an L1 term, which all select parameters by name."""
    torch.manual_seed(0)
    net = kk.KAN([3, 8, 1])
    target = x.square().sum(1, keepdim=True)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in net.named_parameters() if "spline" in n], "weight_decay": 0.0},
            {"params": [p for n, p in net.named_parameters() if "base" in n], "weight_decay": 1e-2},
        ],
        lr=0.05,
    )
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (net(x) - target).square().mean()
        penalty = sum(p.abs().mean() for n, p in net.named_parameters() if "spline_weight" in n)
        (loss + 1e-4 * penalty).backward()
        torch.nn.utils.clip_grad_norm_([p for n, p in net.named_parameters() if "base_weight" in n], 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
