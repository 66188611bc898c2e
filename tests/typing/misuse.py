"""Type checkers must report every line that ends in `# error` and no other line. This file is not executed."""

import torch

import kan_kernels as kk

net = kk.KAN([3, 5, 2])
layer = net.layers[0]
x = torch.rand(4, 3)

layer.edge_norms(x, "l2")  # error
kk.edge_norms(x, layer.spline_weight, layer.grid, ord="max")  # error
kk.kan_linear(x, layer.spline_weight, layer.grid, base_activation="relu")  # error
layer.update_grid(x, quantiles="deciles")  # error
net.regularization_loss(x, metric="l2")  # error
net(x, update_gird=True)  # error
net(x).backwards()  # error
kk.KANLinear(3, "2")  # error
kk.use_backend("fast")  # error
kk.accelerate([net])  # error
kk.accelerate(net).depht()  # error
kk.paralel.ColwiseKAN()  # error
net.symbolic(x, lib=[torch.sin])  # error
