"""Tests of attribution, pruning, persistent masks and regularization on data."""

import pytest
import torch

import kan_kernels as kk


def dead_ends():
    """Return a net [4, 6, 2] in float64 and inputs. Its hidden node 2 feeds nothing, and its input 1 has little effect."""
    torch.manual_seed(0)
    net = kk.KAN([4, 6, 2], dtype=torch.float64, scale_noise=3.0)
    with torch.no_grad():
        net.layers[1].spline_weight[:, 2] = 0
        net.layers[1].base_weight[:, 2] = 0
        net.layers[0].spline_weight[:, 1] *= 1e-4
        net.layers[0].base_weight[:, 1] *= 1e-4
    return net, torch.rand(129, 4, dtype=torch.float64) * 2 - 1


def test_the_pruned_net_computes_what_the_masked_one_does():
    net, x = dead_ends()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pruned, cut = net.prune(x, edge_th=0.05)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert cut.nodes == [[2]]
    assert cut.widths == [4, 5, 2]
    assert {i for _, i in cut.edges[0]} >= {1}
    assert "hidden layer 1: 1 nodes cut" in str(cut)
    assert "pruned=" in repr(pruned.layers[0])

    masked = kk.KAN([4, 6, 2], dtype=torch.float64)
    masked.load_state_dict(before)
    with torch.no_grad():
        for layer, edges in zip(masked.layers, cut.edges, strict=True):
            for o, i in edges:
                layer.spline_weight[o, i] = 0
                layer.base_weight[o, i] = 0
        masked.layers[0].spline_weight[2] = 0
        masked.layers[0].base_weight[2] = 0
        masked.layers[1].spline_weight[:, 2] = 0
        masked.layers[1].base_weight[:, 2] = 0
    torch.testing.assert_close(pruned(x), masked(x), rtol=1e-12, atol=1e-12)


def test_pruned_edges_stay_exactly_zero_through_training():
    net, x = dead_ends()
    pruned, cut = net.prune(x, edge_th=0.05)
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (pruned(x).square().mean() + 0.1 * pruned.regularization_loss(x) + 0.1 * pruned.regularization_loss()).backward()
        optimizer.step()
    norms = pruned.layers[0].edge_norms(x)
    assert bool((norms[pruned.layers[0].edge_mask == 0] == 0).all())
    assert bool((norms[pruned.layers[0].edge_mask == 1] > 0).all())
    assert bool((pruned.layers[0].edge_norms(x, "std")[pruned.layers[0].edge_mask == 0] == 0).all())
    again, more = pruned.prune(x, edge_th=0.0)
    assert sum(map(len, more.edges)) == 0
    assert torch.equal(again.layers[0].edge_mask, pruned.layers[0].edge_mask)
    assert sum(map(len, cut.edges)) > 0
    pruned(x, update_grid=True)
    assert bool((pruned.refine(10).layers[0].edge_norms(x)[pruned.layers[0].edge_mask == 0] == 0).all())


def test_state_dicts_are_efficient_kans_until_the_first_prune():
    net, x = dead_ends()
    assert not any("mask" in name for name in net.state_dict())
    pruned, cut = net.prune(x, edge_th=0.05)
    state = pruned.state_dict()
    assert state["layers.0.edge_mask"].shape == (5, 4)
    fresh = kk.KAN(cut.widths, dtype=torch.float64)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), pruned(x))
    with pytest.raises(RuntimeError, match="edge_mask"):
        fresh.load_state_dict(kk.KAN(cut.widths, dtype=torch.float64).state_dict())


def test_paper_regularisation():
    """The loss of every layer is the sum of the edges' mean |phi| plus the entropy of their shares."""
    net, x = dead_ends()
    expected, inputs = 0.0, x
    for layer in net.layers:
        norms = layer.edge_norms(inputs)
        shares = norms / norms.sum()
        expected = expected + 0.5 * norms.sum() - 2.0 * (shares * shares.clamp_min(1e-150).log()).sum()
        inputs = layer(inputs)
    torch.testing.assert_close(net.regularization_loss(x, 0.5, 2.0), expected)


def test_efficient_kans_positional_factors():
    net, _ = dead_ends()
    expected = net.regularization_loss(regularize_activation=0.5, regularize_entropy=0.25)
    torch.testing.assert_close(net.regularization_loss(0.5, 0.25), expected)
    torch.testing.assert_close(net.regularization_loss(0.5, regularize_entropy=0.25), expected)
    torch.testing.assert_close(net.layers[0].regularization_loss(1.0, 1.0), net.layers[0].regularization_loss())


def test_bad_input():
    net, x = dead_ends()
    for call, error, message in [
        (lambda: net.regularization_loss(x, metric="l2"), ValueError, "metric: expected one of"),
        (lambda: net.layers[0].regularization_loss(x, metric="edge_backward"), ValueError, "metric: expected one of"),
        (lambda: net.regularization_loss("x"), TypeError, "x: expected a torch.Tensor, a number or None, got str"),
        (lambda: net.regularization_loss(x, "1"), TypeError, "regularize_activation: expected a number, got str"),
        (lambda: net.attribute(x[:1]), ValueError, r"x: expected at least 2 rows, got shape \(1, 4\)"),
        (lambda: net.prune(x[:, :3]), ValueError, "x: expected 4 features in the last dimension"),
        (lambda: net.prune(x * float("nan")), ValueError, "x: expected finite inputs"),
        (lambda: net.prune(x, node_th=-1.0), ValueError, "node_th: expected a finite number >= 0.0"),
        (lambda: net.prune(x, edge_th="0"), TypeError, "edge_th: expected a number, got str"),
        (lambda: net.prune(x, node_th=1e9), ValueError, "node_th: expected a value that keeps nodes in hidden layer 1"),
    ]:
        with pytest.raises(error, match=message):
            call()
