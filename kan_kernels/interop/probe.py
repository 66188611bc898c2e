"""Does a module compute what its parameters' names promise? Its own forward is compared with the fused one before."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

POINTS = 11
TOLERANCE = 1e-8  # relative, in float64: a layer that adds a bias of 1e-4 is another layer


def probe_inputs(grid: Tensor) -> Tensor:
    """(11, I), float64: inputs over the length of every feature's knots (I, T) and beyond, in another order for each."""
    low, high = grid[:, 0].double(), grid[:, -1].double()
    row = torch.arange(POINTS, dtype=torch.float64, device=grid.device).unsqueeze(1)
    feature = torch.arange(grid.shape[0], dtype=torch.float64, device=grid.device)
    place = (row * 0.381966 + feature * 0.7548777) % 1 * 1.1 - 0.05
    return low + place * (high - low)


def extreme_inputs(features: int, like: Tensor) -> Tensor:
    """(6, features), float64: what a clamp or nan_to_num before the layer would show on."""
    values = torch.tensor([1e3, -1e3, 30.0, -30.0, 0.0, float("nan")], dtype=torch.float64)
    return values.to(like.device).unsqueeze(1).expand(-1, features).clone()


def disagreement(module: nn.Module, leave_out: Sequence[str], theirs: Callable[[Any], Any], ours: Callable[[Any], Any]) -> str:
    """Why two forwards of a module are not the same function, "" if they are.

    Each is called with a float64 copy of the module, in training mode, so that dropout and the like show, and not; without
    the attributes `leave_out` and hooks. It returns tensors to compare. What is NaN in theirs is not compared.
    """
    found_numbers = False
    for training in (True, False):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[p.device for p in module.parameters() if p.is_cuda]):
                copies = [_twin(module, leave_out).train(training) for _ in range(2)]
                pairs = list(zip(theirs(copies[0]), ours(copies[1]), strict=True))
        except Exception as error:  # whatever a look-alike does
            return f"its forward cannot be compared: {type(error).__name__}: {error}"
        for a, b in pairs:
            if a.shape != b.shape:
                return f"its forward gives shape {tuple(a.shape)} where the fused one gives {tuple(b.shape)}"
            off = (a - b).abs().masked_fill(a.isnan() | (a == b), 0.0)
            size = a.nan_to_num(0.0, 0.0, 0.0).abs().max()
            if not bool((off <= TOLERANCE * (1 + size)).all()):
                return f"its forward computes something else: up to {off.max().item():.3g} beside values of {size.item():.3g}"
            found_numbers = found_numbers or bool((a.isfinite() & (a != 0)).any())
    return "" if found_numbers else "its own forward gives nothing to compare"


def _twin(module: nn.Module, leave_out: Sequence[str]) -> nn.Module:
    twin = module.__class__.__new__(module.__class__)
    memo: dict[int, Any] = {}
    for name, value in vars(module).items():
        if name in leave_out:
            continue
        try:
            twin.__dict__[name] = copy.deepcopy(value, memo)
        except RuntimeError:  # tensors with a graph, as pykan's scores: no forward reads them
            continue
    for part in twin.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    return twin.double()
