"""Calls of the public API in user code. Type checkers verify every `assert_type`. This file is not executed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import kan_kernels as kk
from kan_kernels import AttributionScores, Edge, Info, PruneResult


class Peer(nn.Module):
    """A user's model with an additional attribute."""

    depth: int = 2


class Net(kk.KAN):
    """A subclass of `KAN`."""


def layers() -> None:
    layer = kk.KANLinear(3, 2, grid_size=5, spline_order=3, base_activation=nn.SiLU, device="cpu", dtype=torch.float64)
    assert_type(layer, kk.KANLinear)
    assert_type(kk.KANLinear(3, 2, base_activation=None, device=torch.device("cpu")), kk.KANLinear)
    x = torch.rand(4, 3)
    assert_type(layer(x), Tensor)
    assert_type(layer.forward(x), Tensor)
    assert_type(layer.spline_weight, nn.Parameter)
    assert_type(layer.grid, Tensor)
    assert_type(layer.edge_mask, Tensor | None)
    assert_type(layer.base_activation, nn.Module | None)
    assert_type(layer.in_features, int)
    assert_type(layer.out_features, int)
    assert_type(layer.grid_size, int)
    assert_type(layer.spline_order, int)
    assert_type(layer.scaled_spline_weight, Tensor)
    scaled: Tensor = layer.spline_weight * layer.spline_scaler.unsqueeze(-1)
    assert_type(nn.functional.linear(layer.b_splines(x).flatten(1), scaled.flatten(1)), Tensor)
    assert_type(nn.functional.linear(nn.functional.silu(x), layer.base_weight), Tensor)
    if layer.spline_scaler is None or layer.base_weight is None:
        return
    assert_type(layer.b_splines(x), Tensor)
    assert_type(layer.curve2coeff(x, torch.rand(4, 3, 2)), Tensor)
    assert_type(layer.grid_range, tuple[float, float])
    assert_type(layer.coverage(x), Tensor)
    assert_type(layer.edge_norms(x), Tensor)
    assert_type(layer.edge_norms(x, "std"), Tensor)
    assert_type(layer.edge_norms(x, ord="l1"), Tensor)
    assert_type(layer.edge_scores(x), Tensor)
    assert_type(layer.regularization_loss(), Tensor)
    assert_type(layer.regularization_loss(x, metric="edge_forward_spline_n"), Tensor)
    assert_type(layer.refine(10), kk.KANLinear)
    layer.refine_(10)
    layer.update_grid(x, margin=0.1, quantiles="pykan")
    layer.set_grid(layer.grid)
    layer.reset_parameters()


def edges() -> None:
    edge = kk.KANLinear(3, 2).edge(1, 2)
    assert_type(edge, Edge)
    t = torch.linspace(-1, 1, 5)
    assert_type(edge(t), Tensor)
    assert_type(edge.derivative(t, order=2), Tensor)
    assert_type(edge.base(t), Tensor)
    assert_type(edge.spline(t), Tensor)
    assert_type(edge.base_weight, Tensor | None)
    assert_type(edge.out_feature, int)
    assert_type(edge.in_feature, int)
    edge.to_scipy()


def nets() -> None:
    net = kk.KAN([3, 5, 2], grid_size=5)
    assert_type(net, kk.KAN)
    assert_type(kk.KAN([3, 5, 2], grid_range=(0, 1)), kk.KAN)
    assert_type(kk.KAN([3, 5, 2], grid_range=[(-1, 1), (0.0, 2.0)]), kk.KAN)
    x, target = torch.rand(4, 3), torch.rand(4, 2)
    assert_type(net(x), Tensor)
    assert_type(net(x, update_grid=True), Tensor)
    assert_type(net.layers[0], kk.KANLinear)
    assert_type(net.layers[-1].spline_weight, nn.Parameter)
    assert_type(net.layers[:1][0](x), Tensor)
    for layer in net.layers:
        assert_type(layer, kk.KANLinear)
    assert_type(len(net.layers), int)
    assert_type(net._kan_layers(), list[kk.KANLinear])
    assert_type(net.coverage(x), list[Tensor])
    assert_type(net.grid_size, int)
    assert_type(net.refine(10), kk.KAN)
    assert_type(net.regularization_loss(), Tensor)
    assert_type(net.regularization_loss(1.0, 0.5), Tensor)
    assert_type(net.regularization_loss(x, metric="edge_backward"), Tensor)

    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(10):
        optimizer.zero_grad()
        loss = (net(x) - target).square().mean() + 1e-3 * net.regularization_loss(x)
        loss.backward()
        optimizer.step()
        assert_type(loss.item(), int | float | bool)

    scores = net.attribute(x)
    assert_type(scores, AttributionScores)
    assert_type(scores.nodes, list[Tensor])
    assert_type(scores.edges[0], Tensor)
    small, cut = net.prune(x, node_th=0.0, edge_th=3e-2)
    assert_type(small, kk.KAN)
    assert_type(cut, PruneResult)
    assert_type(cut.nodes, list[list[int]])
    assert_type(cut.edges, list[list[tuple[int, int]]])
    assert_type(cut.widths, list[int])
    kk.plot(net, x, size=(6.9, 4.0), in_names=["a", "b", "c"], out_names=["p", "q"], title="a net").savefig("net.png")


def subclasses() -> None:
    net = Net([3, 5, 2])
    assert_type(net.refine(10), Net)
    assert_type(net.prune(torch.rand(4, 3))[0], Net)
    assert_type(Net.from_pykan({}), Net)
    assert_type(net.double().eval(), Net)


def functions(call: Callable[[Tensor], Tensor]) -> None:
    x, weight, grid, base = torch.rand(4, 3), torch.rand(2, 3, 8), torch.rand(3, 12), torch.rand(2, 3)
    assert_type(kk.kan_linear(x, weight, grid), Tensor)
    assert_type(kk.kan_linear(x, weight, grid, base, spline_scaler=base, base_activation="identity"), Tensor)
    assert_type(kk.kan_linear(x, weight, grid, base, base_activation=torch.tanh), Tensor)
    assert_type(kk.kan_linear(x, weight, grid, base, base_activation=call), Tensor)
    assert_type(kk.kan_linear(x, weight, grid, None, base_activation=None), Tensor)
    assert_type(kk.edge_norms(x, weight, grid, base, "std", spline_scaler=base), Tensor)


def formulas() -> None:
    x, y = torch.rand(10), torch.rand(10)
    erf = kk.symbolic.Function("erf", torch.special.erf, complexity=2)
    best = kk.symbolic.suggest(x, y, lib=["sin", erf], a_range=(-1, 1), weight_simple=0.5)[0]
    assert_type(best, kk.symbolic.Candidate)
    assert_type(best.name, str)
    assert_type(best.r2, float)
    assert_type(best(x), Tensor)
    net = kk.KAN([2, 1])
    found = net.symbolic(torch.rand(10, 2), ("x",), r2_threshold=0.9)
    assert_type(found, kk.symbolic.SymbolicKAN)
    assert_type(found(x), Tensor)
    assert_type(found.functions, dict[tuple[int, int, int], str])
    for edge in found.report():
        assert_type(edge.function, str | None)
    print(found.report(), found.formula(["x", "y"], digits=4)[0])
    kk.plot(net, x, edge_labels=found.functions)


def differential() -> None:
    net, x = kk.KAN([2, 1]), torch.rand(10, 2)
    value, gradient, laplacian = kk.laplacian(net, x, [1.0, 0.0])
    assert_type(value, Tensor)
    assert_type(gradient, Tensor)
    assert_type(laplacian, Tensor)
    assert_type(kk.laplacian(net, x).laplacian, Tensor)
    assert_type(kk.derivatives(net, x, order=(1, 2)).along[0][0], Tensor)
    assert_type(kk.hessian(net, x), Tensor)
    kk.register_derivative_rule(nn.ReLU, lambda module, jet: jet.elementwise(lambda x, n: x.relu() if n == 0 else 0 * x))


def peers() -> None:
    model = kk.accelerate(Peer(), verbose=True)
    assert_type(model, Peer)
    assert_type(model.depth, int)
    assert_type(kk.restore(model), Peer)
    assert_type(kk.accelerate(nn.Sequential(nn.Linear(3, 2))), nn.Sequential)
    own = kk.KAN.from_efficient_kan(model)
    assert_type(own, kk.KAN)
    assert_type(kk.KAN.from_efficient_kan(own.state_dict(), base_activation=nn.SiLU()), kk.KAN)
    assert_type(kk.KAN.from_pykan(model), kk.KAN)
    own.to_pykan().prune()


def backends() -> None:
    with kk.use_backend("reference"):
        pass
    info = kk.info()
    assert_type(info, Info)
    assert_type(info.backend, str)
    assert_type(info.instruction_set, str | None)
    assert_type(info.fallbacks, dict[str, str])
    assert_type(kk.__version__, str)
    assert_type(kk.reference.basis(torch.rand(4, 3), torch.rand(3, 12), degree=3), Tensor)
    kk.parallel.ColwiseKAN(use_local_output=False)
    kk.parallel.RowwiseKAN()
