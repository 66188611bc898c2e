"""pykan networks for tests, with every kind of node and edge."""

import copy

import pytest
import torch

kan = pytest.importorskip("kan", reason="pykan is not installed: pip install kan_kernels[pykan]")


def network(width=(3, 5, 2), seed=0, **options):
    """Return a `MultKAN` whose edges have different scales."""
    settings = {"grid": 5, "k": 3, "noise_scale": 0.5, "auto_save": False} | options
    net = kan.MultKAN(copy.deepcopy(list(width)), seed=seed, **settings)
    with torch.no_grad():
        for layer in net.act_fun:
            layer.scale_sp.mul_(1 + torch.rand_like(layer.scale_sp))
    return net


def affine(net):
    """Return the network with node and subnode transforms that are not the identity."""
    generator = torch.Generator().manual_seed(7)
    for parameter in (*net.node_bias, *net.subnode_bias, *net.node_scale, *net.subnode_scale):
        parameter.data += 0.3 * torch.rand(parameter.shape, generator=generator)
    return net


def masked(net):
    for layer in net.act_fun:
        layer.mask.data[0, 0] = 0.0
    return net


def symbolic(net):
    """Return the network with formulas. One formula is added to a spline, and one is singular."""
    net.fix_symbolic(0, 0, 1, "sin", fit_params_bool=False, verbose=False, log_history=False)
    net.fix_symbolic(0, 1, 1, "1/x", fit_params_bool=False, verbose=False, log_history=False)
    net.fix_symbolic(1, 1, 0, "x^2", fit_params_bool=False, verbose=False, log_history=False)
    net.set_mode(0, 0, 1, "ns")
    return net


NETWORKS = {
    "plain": lambda: network(),
    "one layer": lambda: network((1, 1), grid=1),
    "deep": lambda: network((2, 7, 1, 3), k=2, grid=7),
    "layers of their own": lambda: network((2, 3, 1), grid=[4, 6], k=[2, 3]),
    "products": lambda: network((3, [2, 2], [1, 3], 2)),
    "products of three": lambda: network((3, [2, 2], 2), mult_arity=3),
    "products of many": lambda: network((3, [2, 2], 2), mult_arity=[[], [2, 3], []]),
    "affine": lambda: affine(network((3, [2, 1], 2), affine_trainable=True)),
    "masked": lambda: masked(network()),
    "formulas": lambda: symbolic(network()),
    "no formulas": lambda: symbolic(network(symbolic_enabled=False)),
    "identity": lambda: network(base_fun="identity"),
    "zero": lambda: network(base_fun="zero"),
    "tanh": lambda: network(base_fun=torch.tanh),
    "frozen scales": lambda: network(sp_trainable=False, sb_trainable=False),
    "sparse": lambda: network((4, 5, 3), sparse_init=True),
}


def inputs(net, rows=63, seed=0):
    """Return inputs (rows, I) inside and outside of the grids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, net.width_in[0], generator=generator)
