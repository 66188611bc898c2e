"""Modules with efficient-kan's semantics, as in a user's own copy. No package registry contains efficient-kan itself."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F


class KANLinear(nn.Module):
    """The output is the product of the dense bases and a matrix, plus a linear layer of the activation."""

    def __init__(self, inputs, outputs, grid_size=5, spline_order=3, scaled=True, activation=nn.SiLU, seed=0):
        nn.Module.__init__(self)
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape):
            return nn.Parameter(torch.randn(shape, generator=generator) / inputs**0.5)

        self.in_features, self.out_features = inputs, outputs
        self.grid_size, self.spline_order, self.grid_eps = grid_size, spline_order, 0.02
        knots = torch.arange(-spline_order, grid_size + spline_order + 1) * (2 / grid_size) - 1
        self.register_buffer("grid", knots.repeat(inputs, 1))
        self.base_weight = drawn(outputs, inputs)
        self.spline_weight = drawn(outputs, inputs, grid_size + spline_order)
        if scaled:
            self.spline_scaler = drawn(outputs, inputs)
        self.enable_standalone_scale_spline = scaled
        self.base_activation = activation()

    def bases(self, x):
        """Return the bases (N, I, G+K), computed by the Cox-de Boor recursion."""
        t, x = self.grid, x.unsqueeze(-1)
        values = ((t[:, :-1] <= x) & (x < t[:, 1:])).to(x.dtype)
        for k in range(1, self.spline_order + 1):
            rising = (x - t[:, : -k - 1]) / (t[:, k:-1] - t[:, : -k - 1])
            falling = (t[:, k + 1 :] - x) / (t[:, k + 1 :] - t[:, 1:-k])
            values = rising * values[..., :-1] + falling * values[..., 1:]
        return values

    def forward(self, x):
        rows = x.reshape(-1, self.in_features)
        weight = self.spline_weight
        if self.enable_standalone_scale_spline:
            weight = weight * self.spline_scaler.unsqueeze(-1)
        y = F.linear(self.base_activation(rows), self.base_weight) + F.linear(self.bases(rows).flatten(1), weight.flatten(1))
        return y.view(*x.shape[:-1], self.out_features)

    def update_grid(self, x, margin=0.01):
        raise AssertionError("the peer's own grid update was called")


class WithoutUpdateGrid(nn.Module):
    """A copy of `KANLinear` that has only the attributes and methods that its forward needs."""

    def __init__(self, inputs, outputs):
        super().__init__()
        full = KANLinear(inputs, outputs)
        for name in ("in_features", "spline_order", "grid_size", "base_activation", "enable_standalone_scale_spline"):
            setattr(self, name, getattr(full, name))
        self.register_buffer("grid", full.grid)
        self.base_weight, self.spline_weight, self.spline_scaler = full.base_weight, full.spline_weight, full.spline_scaler

    bases, out_features = KANLinear.bases, property(lambda self: self.base_weight.shape[0])
    forward = KANLinear.forward


class Rewritten(nn.Module):
    """A version that calls `F.silu` instead of a module and has other names for the sizes.

    It has no flags, and it has a spline_scaler only if scaled is True.
    """

    def __init__(self, input_dim, output_dim, num=4, k=2, scaled=False):
        super().__init__()
        full = KANLinear(input_dim, output_dim, num, k)
        self.input_dim, self.output_dim, self.k = input_dim, output_dim, k
        self.register_buffer("grid", full.grid)
        self.base_weight, self.spline_weight = full.base_weight, full.spline_weight
        if scaled:
            self.spline_scaler = full.spline_scaler

    def b_splines(self, x):
        x, t = x.unsqueeze(-1), self.grid
        values = ((x >= t[:, :-1]) & (x < t[:, 1:])).to(x.dtype)
        for k in range(1, self.k + 1):
            left = (x - t[:, : -(k + 1)]) / (t[:, k:-1] - t[:, : -(k + 1)]) * values[..., :-1]
            values = left + (t[:, k + 1 :] - x) / (t[:, k + 1 :] - t[:, 1:(-k)]) * values[..., 1:]
        return values

    def forward(self, x):
        assert x.shape[-1] == self.input_dim
        weight = self.spline_weight
        if hasattr(self, "spline_scaler"):
            weight = weight * self.spline_scaler[..., None]
        spline = self.b_splines(x.reshape(-1, self.input_dim)).flatten(1) @ weight.reshape(self.output_dim, -1).T
        return spline.reshape(*x.shape[:-1], self.output_dim) + F.linear(self.activated(x), self.base_weight)

    def activated(self, x):
        return F.silu(x)


class RewrittenWithoutActivation(Rewritten):
    """A version without base activation."""

    def activated(self, x):
        return x


class Grouped(nn.Module):
    """A layer for grouped convolutions, as in the package convkan. Its tensors have a leading dimension for the groups."""

    def __init__(self, groups=2, inputs=3, outputs=2, grid_size=5, spline_order=3):
        super().__init__()
        self.in_features, self.out_features, self.groups = inputs, outputs, groups
        self.grid_size, self.spline_order, self.grid_eps = grid_size, spline_order, 0.02
        knots = torch.arange(-spline_order, grid_size + spline_order + 1) * (2 / grid_size) - 1
        self.register_buffer("grid", knots.expand(groups, inputs, -1).contiguous())
        self.base_weight = nn.Parameter(torch.randn(groups, outputs, inputs))
        self.spline_weight = nn.Parameter(torch.randn(groups, outputs, inputs, grid_size + spline_order))
        self.spline_scaler = nn.Parameter(torch.randn(groups, outputs, inputs))
        self.enable_standalone_scale_spline = True
        self.base_activation = nn.SiLU()

    def forward(self, x):
        return torch.bmm(self.base_activation(x), self.base_weight.transpose(1, 2))


class KAN(nn.Module):
    """A stack of `KANLinear` with the keys of efficient-kan's state_dict."""

    def __init__(self, widths, **options):
        super().__init__()
        pairs = enumerate(pairwise(widths))
        self.layers = nn.ModuleList(KANLinear(i, o, seed=k, **options) for k, (i, o) in pairs)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x
