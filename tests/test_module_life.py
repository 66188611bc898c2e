"""A net supports what an `nn.Linear` supports.

The tests cover precision, copies, checkpoints, devices, optimizers, threads and processes.
"""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import kan_kernels as kk


@pytest.fixture
def net():
    torch.manual_seed(0)
    return kk.KAN([3, 5, 2])


@pytest.fixture
def x():
    return torch.randn(63, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(net, x, dtype):
    """Autocast works as for `F.linear`.

    It casts the operands, the results have the accuracy of the autocast dtype, and gradients have the parameters' dtype.
    """
    linear = nn.Linear(3, 2)
    points = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        y = net(points)
        assert y.dtype is linear(points).dtype is dtype
        assert net.layers[0].edge_norms(x).dtype is dtype
    y.float().sin().sum().backward()
    assert points.grad.dtype is torch.float32
    gradients = [p.grad.clone() for p in net.parameters()]
    assert all(g.dtype is torch.float32 for g in gradients)
    # The result equals that of explicit casts, because the kernels evaluate half types in float32.
    half = copy.deepcopy(net).to(dtype)
    for layer, own in zip(half.layers, net.layers, strict=True):
        layer.grid = own.grid
    torch.testing.assert_close(y, half(x.to(dtype)), rtol=0, atol=0)
    net.zero_grad()
    net(x).sin().sum().backward()
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert (parameter.grad - gradient).norm() < 0.02 * parameter.grad.norm() + 1e-3
    with torch.autocast("cpu", dtype):
        assert net.double()(x.double()).dtype is torch.float64  # autocast does not cast float64, as in torch


def test_autocast_compiled(net, x):
    torch.use_deterministic_algorithms(False)

    def step(x):
        with torch.autocast("cpu", torch.bfloat16):
            return net(x)

    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(x), step(x))


def test_grad_scaler(net, x):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    with torch.autocast("cpu", torch.float16):
        loss = net(x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    net.layers[0].spline_weight.grad[0, 0, 0] = float("inf")
    state = net.layers[0].spline_weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(net.layers[0].spline_weight, state)
    assert scaler.get_scale() < 1024.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_module_dtypes(net, x, dtype):
    converted = copy.deepcopy(net).to(dtype)
    method = {torch.float64: "double", torch.bfloat16: "bfloat16", torch.float16: "half"}[dtype]
    y = getattr(net, method)()(x.to(dtype))
    assert y.dtype is dtype
    assert torch.equal(y, converted(x.to(dtype)))


def test_activation_checkpointing(net, x):
    points = x.clone().requires_grad_()
    leaves = [points, *net.parameters()]
    expected = torch.autograd.grad(net(points).sin().sum(), leaves)
    found = torch.autograd.grad(checkpoint(net, points, use_reentrant=False).sin().sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def saved(net, folder):
    torch.save(net, folder / "net.pt")
    return torch.load(folder / "net.pt", weights_only=False)


def by_state(net, folder):
    torch.save(net.state_dict(), folder / "state.pt")
    other = kk.KAN([3, 5, 2])
    other.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    return other


def by_safetensors(net, folder):
    from safetensors.torch import load_file, save_file

    save_file(net.state_dict(), str(folder / "state.safetensors"))
    other = kk.KAN([3, 5, 2])
    other.load_state_dict(load_file(folder / "state.safetensors"))
    return other


def by_assignment(net, folder):
    with torch.device("meta"):
        other = kk.KAN([3, 5, 2])
    other.load_state_dict(net.state_dict(), assign=True)
    return other


COPIES = {
    "deepcopy": lambda net, folder: copy.deepcopy(net),
    "pickle": lambda net, folder: pickle.loads(pickle.dumps(net)),
    "torch.save": saved,
    "state_dict": by_state,
    "safetensors": by_safetensors,
    "meta and assign": by_assignment,
}


@pytest.mark.parametrize("way", COPIES)
def test_copies(net, x, way, tmp_path):
    net.layers[0].edge_mask = (torch.rand(5, 3) < 0.7).float()
    other = COPIES[way](net, tmp_path)
    assert torch.equal(other(x), net(x))
    other(x).sum().backward()
    assert all(p.grad is not None for p in other.parameters())


def test_a_state_dict_is_of_the_parameters(net):
    """In-place writes to a state_dict, as in averages and distributed checkpoints, change the parameters."""
    for name, value in net.state_dict().items():
        if not name.endswith("grid"):
            value.zero_()
    assert not any(parameter.any() for parameter in net.parameters())


def test_fake_tensors():
    with torch._subclasses.FakeTensorMode():
        assert kk.KAN([3, 5, 2])(torch.empty(7, 3)).shape == (7, 2)


def test_autocast_of_another_half_type(x):
    net = kk.KAN([3, 5, 2]).half()
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype is torch.bfloat16


def test_meta_device(x):
    """A net that was created on the meta device can be allocated and initialized later."""
    with torch.device("meta"):
        net = kk.KAN([3, 5, 2])
    assert net(x.to("meta")).shape == (63, 2)
    net = net.to_empty(device="cpu")
    torch.manual_seed(0)
    for layer in net.layers:
        layer.reset_parameters()
    torch.manual_seed(0)
    assert torch.equal(net(x), kk.KAN([3, 5, 2])(x))


def test_parametrizations(net, x):
    layer = net.layers[0]
    y = layer(x)
    nn.utils.parametrizations.weight_norm(layer, "spline_weight")
    torch.testing.assert_close(layer(x), y)
    layer(x).sum().backward()
    assert layer.parametrizations.spline_weight.original0.grad is not None
    nn.utils.parametrize.remove_parametrizations(layer, "spline_weight")
    torch.testing.assert_close(layer(x), y)
    nn.utils.prune.random_unstructured(layer, "spline_weight", amount=0.5)
    assert (layer.spline_weight == 0).any()
    assert not torch.equal(layer(x), y)


def test_weight_decay_groups(net, x):
    decayed = [p for name, p in net.named_parameters() if name.endswith("spline_weight")]
    rest = [p for name, p in net.named_parameters() if not name.endswith("spline_weight")]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.5}, {"params": rest, "weight_decay": 0.0}], lr=0.1)
    optimizer.zero_grad()
    (net(x) * 0).sum().backward()
    before = [p.detach().clone() for p in decayed + rest]
    optimizer.step()
    for k, (parameter, old) in enumerate(zip(decayed + rest, before, strict=True)):
        torch.testing.assert_close(parameter.detach(), old * (0.95 if k < len(decayed) else 1.0))


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False}], ids=str)
def test_optimizers_of_every_kind(net, x, options):
    twin = copy.deepcopy(net)
    for model, settings in ((net, options), (twin, {})):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, **settings)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for value, expected in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(value, expected)


def test_moving_averages(net, x):
    averaged = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    first = copy.deepcopy(net.state_dict())
    averaged.update_parameters(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1.0
    averaged.update_parameters(net)
    for name, value in averaged.module.state_dict().items():
        torch.testing.assert_close(value, first[name] + (0.0 if name.endswith("grid") else 0.5))
    assert averaged(x).shape == (63, 2)


def test_deterministic_algorithms(net, x):
    """With deterministic algorithms, which all tests enable, no operator raises and equal inputs give equal bits."""
    assert torch.are_deterministic_algorithms_enabled()
    gradients = [torch.autograd.grad(net(x).sin().sum(), list(net.parameters())) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_concurrent_threads(net):
    """Several Python threads can compute the forward and the backward at the same time."""
    inputs = [torch.randn(500 + k, 3) for k in range(4)]
    expected = [(net(x), *torch.autograd.grad(net(x).sin().sum(), list(net.parameters()))) for x in inputs]
    wrong = []

    def work(k):
        for _ in range(10):
            y = net(inputs[k])
            found = (y, *torch.autograd.grad(y.sin().sum(), list(net.parameters())))
            if not all(torch.equal(a, b) for a, b in zip(found, expected[k], strict=True)):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Computing(TensorDataset):
    """A dataset that computes with the layer in workers, which are forked after this process has used its threads."""

    def __init__(self, x, net):
        super().__init__(x)
        self.net = net

    def __getitem__(self, k):
        with torch.no_grad():
            return self.net(self.tensors[0][k])


def test_data_loader_workers(net):
    x = torch.randn(200, 3)
    with torch.no_grad():
        expected = net(x.repeat(50, 1))[:200]
    found = torch.cat(list(DataLoader(Computing(x, net), batch_size=50, num_workers=2, multiprocessing_context="fork")))
    torch.testing.assert_close(found, expected)


def test_named_parameters_load(net, x):
    """`named_parameters`, which adapters and hand-written averages save, has the names of a state_dict."""
    other = kk.KAN([3, 5, 2])
    own = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    result = other.load_state_dict(own, strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys == ["layers.0.grid", "layers.1.grid"]
    assert torch.equal(other(x), net(x))
    assert set(own) < set(net.state_dict())


def test_default_device(x):
    """A device argument overrides the default device."""
    with torch.device("meta"):
        layer = kk.KANLinear(3, 5, device="cpu")
        layer.update_grid(x)
        layer.set_grid(layer.grid)
        layer = layer.refine(10)
        layer.reset_parameters()
    assert layer(x).isfinite().all()


def test_flops_are_counted(net, x):
    from torch.utils.flop_counter import FlopCounterMode

    per_row = 2 * (3 * 5 + 5 * 2) * (3 + 1 + 1)  # K+1 bases and the base activation of every edge
    with FlopCounterMode(display=False) as forward:
        y = net(x)
    assert forward.get_total_flops() == 63 * per_row
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 63 * (2 * per_row - 2 * 3 * 5 * 5)  # the net's inputs need no gradient
    with FlopCounterMode(display=False) as norms:
        net.layers[0].edge_norms(x).sum().backward()
    assert norms.get_total_flops() == 63 * 2 * 3 * 5 * 5 * 3
    with FlopCounterMode(display=False) as moments:
        net.layers[0].edge_norms(x, "std")
    assert moments.get_total_flops() > 0


def test_symbolic_trace(net, x):
    """torch.fx records a layer as a call of `kan_linear`. Tracing a net needs the value of its update_grid argument."""
    model = nn.Sequential(nn.Linear(3, 3), kk.KANLinear(3, 2))
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
    assert kk.kan_linear in {node.target for node in traced.graph.nodes}
    traced = torch.fx.symbolic_trace(net, concrete_args={"update_grid": False})
    assert torch.equal(traced(x), net(x))
