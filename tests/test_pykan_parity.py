"""Norms, scores, regularization and pruning equal those of pykan 0.2.8 for the same weights."""

import pytest
import torch

import kan_kernels as kk

kan = pytest.importorskip("kan", reason="pykan is not installed: pip install kan_kernels[pykan]")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("float64_in_a_directory_of_its_own")]


def pair(width=(3, 5, 4, 2), grid=5, k=3, seed=0):
    """Return a MultKAN, a KAN with the same weights, and inputs."""
    theirs = kan.MultKAN(list(width), grid=grid, k=k, seed=seed, auto_save=False, symbolic_enabled=False, noise_scale=0.5)
    ours = kk.KAN(list(width), grid_size=grid, spline_order=k)
    with torch.no_grad():
        for layer, peer in zip(ours.layers, theirs.act_fun, strict=True):
            peer.scale_sp.mul_(1 + torch.rand_like(peer.scale_sp))
            layer.grid.copy_(peer.grid)
            layer.spline_weight.copy_(peer.coef.transpose(0, 1))
            layer.base_weight.copy_(peer.scale_base.t())
            layer.spline_scaler.copy_(peer.scale_sp.t())
    x = torch.rand(200, width[0], generator=torch.Generator().manual_seed(seed)) * 2 - 1
    theirs(x)
    return theirs, ours, x


def test_outputs_and_norms():
    theirs, ours, x = pair()
    torch.testing.assert_close(ours(x), theirs(x))
    inputs = x
    for layer, peer in zip(ours.layers, theirs.edge_actscale, strict=True):
        torch.testing.assert_close(layer.edge_norms(inputs, "std"), peer, rtol=1e-10, atol=1e-12)
        inputs = layer(inputs)
    inputs = x
    for layer, acts in zip(ours.layers, theirs.spline_postacts, strict=True):
        torch.testing.assert_close(layer.edge_norms(inputs, "l1"), acts.abs().mean(0), rtol=1e-10, atol=1e-12)
        inputs = layer(inputs)


def test_attribution():
    theirs, ours, x = pair()
    theirs.attribute()
    scores = ours.attribute(x)
    for value, peer in zip(scores.nodes, theirs.node_scores, strict=True):
        torch.testing.assert_close(value, peer, rtol=1e-10, atol=1e-12)
    for value, peer in zip(scores.edges, theirs.edge_scores, strict=True):
        torch.testing.assert_close(value, peer, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("metric", ["edge_forward_spline_n", "edge_forward_spline_u", "edge_backward"])
def test_regularisation_and_its_gradient(metric):
    theirs, ours, x = pair()
    theirs.attribute()
    peer = theirs.get_reg(metric, 1.5, 2.0, 0.0, 0.0)
    loss = ours.regularization_loss(x, regularize_activation=1.5, regularize_entropy=2.0, metric=metric)
    torch.testing.assert_close(loss, peer, rtol=1e-10, atol=0)
    if metric == "edge_backward":
        return  # pykan detaches the divisors of these scores
    peer.backward()
    loss.backward()
    for layer, other in zip(ours.layers, theirs.act_fun, strict=True):
        torch.testing.assert_close(layer.spline_weight.grad, other.coef.grad.transpose(0, 1), rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(layer.base_weight.grad, other.scale_base.grad.t(), rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(layer.spline_scaler.grad, other.scale_sp.grad.t(), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(("node_th", "edge_th"), [(0.3, 0.1), (0.01, 0.2), (0.0, 0.0)])
def test_pruning(node_th, edge_th):
    theirs, ours, x = pair((3, 7, 5, 2), seed=3)
    small = theirs.prune(node_th=node_th, edge_th=edge_th)
    pruned, cut = ours.prune(x, node_th=node_th, edge_th=edge_th)
    assert cut.widths == [int(width[0]) for width in small.width]
    for layer, peer in zip(pruned.layers, small.act_fun, strict=True):
        assert (layer.in_features, layer.out_features) == (peer.in_dim, peer.out_dim)
        assert torch.equal(layer.edge_mask.t(), peer.mask)
    torch.testing.assert_close(pruned(x), small(x), rtol=1e-10, atol=1e-12)
    assert sum(map(len, cut.edges)) == sum(int((peer.mask == 0).sum()) for peer in small.act_fun)


def test_grid_update_places_its_knots():
    theirs, ours, x = pair((3, 2))
    x = torch.cat([x, torch.randn(50, 3)])
    theirs.act_fun[0].update_grid_from_samples(x)
    ours.layers[0].update_grid(x, quantiles="pykan")
    torch.testing.assert_close(ours.layers[0].grid, theirs.act_fun[0].grid)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_plot_of_a_pykan_network_accelerated_or_not():
    """A pykan network has its own `plot`. `kk.plot` draws a KAN with the same weights."""
    theirs, _, x = pair((2, 3, 1))
    before = kk.plot(kk.KAN.from_pykan(theirs), x)
    kk.accelerate(theirs)
    with pytest.raises(TypeError, match=r"net: expected a kan_kernels.KAN, got kan_kernels\..*FusedMultKAN; KAN"):
        kk.plot(theirs, x)
    after = kk.plot(kk.KAN.from_pykan(theirs), x)
    assert len(after.axes[0].lines) == 9
    for line, other in zip(after.axes[0].lines, before.axes[0].lines, strict=True):
        assert line.get_xydata() == pytest.approx(other.get_xydata())
