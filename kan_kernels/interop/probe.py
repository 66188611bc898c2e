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


def disagreement(module: nn.Module, leave_out: Sequence[str], theirs: Callable[[Any], Any], ours: Callable[[Any], Any]) -> str:
    """Why two forwards of a module are not the same function, "" if they are.

    Each is called with a float64 copy of the module, in training mode, so that dropout and the like show; without the
    attributes `leave_out`. It returns tensors to compare. What is NaN in theirs is not compared.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[p.device for p in module.parameters() if p.is_cuda]):
            pairs = list(zip(theirs(_twin(module, leave_out)), ours(_twin(module, leave_out)), strict=True))
    except Exception as error:  # whatever a look-alike does
        return f"its forward cannot be compared: {type(error).__name__}: {error}"
    if not any(bool((~a.isnan()).any()) for a, _ in pairs):
        return "its own forward gives NaN"
    for a, b in pairs:
        if a.shape != b.shape:
            return f"its forward gives shape {tuple(a.shape)} where the fused one gives {tuple(b.shape)}"
        off = (a - b).abs().masked_fill(a.isnan() | (a == b), 0.0)
        size = a.nan_to_num(0.0, 0.0, 0.0).abs().max()
        if not bool((off <= TOLERANCE * (1 + size)).all()):
            return f"its forward computes something else: up to {off.max().item():.3g} beside values of {size.item():.3g}"
    return ""


def _twin(module: nn.Module, leave_out: Sequence[str]) -> nn.Module:
    twin = module.__class__.__new__(module.__class__)
    twin.__dict__.update(copy.deepcopy({name: value for name, value in vars(module).items() if name not in leave_out}))
    return twin.double().train()
