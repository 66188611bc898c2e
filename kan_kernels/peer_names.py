"""A layer's parameters under efficient-kan's names and in its shapes: its `state_dict`, and views of them.

What loads may have the parameters' own names, as `named_parameters` gives them, too.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_grid
from .sharding import contiguous, is_sharded, local

# The parameters and the mask, laid out as the kernels read them, and their efficient-kan names. Each permutation is its own
# inverse's partner: theirs = ours.permute(to_theirs), ours = theirs.permute(to_ours).
_LAYOUT = {
    "base_coef": ("base_weight", (1, 0), (1, 0)),
    "coef": ("spline_weight", (2, 0, 1), (1, 2, 0)),
    "scaler": ("spline_scaler", (1, 0), (1, 0)),
    "mask": ("edge_mask", (1, 0), (1, 0)),
}


class PeerNames(nn.Module):
    """A module whose `coef`, `base_coef`, `scaler` and `mask` have other names and shapes for the world."""

    grid: Tensor
    coef: nn.Parameter
    base_coef: nn.Parameter | None
    scaler: nn.Parameter | None
    mask: Tensor | None
    spline_order: int

    @property
    def base_weight(self) -> Tensor | None:
        """(O, I), a view of `base_coef`; None without a base activation."""
        return self._theirs("base_coef")

    @property
    def spline_weight(self) -> Tensor:
        """(O, I, G+K), a view of `coef`."""
        return self.coef.permute(_LAYOUT["coef"][1])

    @property
    def spline_scaler(self) -> Tensor | None:
        """(O, I), a view of `scaler`; None without a standalone scale."""
        return self._theirs("scaler")

    @property
    def edge_mask(self) -> Tensor | None:
        """(O, I), a view of `mask`; None if nothing was pruned."""
        return self._theirs("mask")

    def _theirs(self, ours: str) -> Tensor | None:
        parameter = getattr(self, ours)
        return None if parameter is None else parameter.permute(_LAYOUT[ours][1])

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """As torch's; of this layer alone, in a process group, also the parameters as its `state_dict` has them.

        There `torch.distributed.checkpoint.state_dict` looks for the tensors that a full state_dict's keys name.
        """
        yield from super().named_buffers(prefix, recurse, remove_duplicate)
        if not recurse and torch.distributed.is_available() and torch.distributed.is_initialized():
            for ours, (theirs, to_theirs, _) in _LAYOUT.items():
                tensor = (self._parameters | self._buffers).get(ours)
                if tensor is not None:
                    yield f"{prefix}.{theirs}" if prefix else theirs, tensor.detach().permute(to_theirs)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        own: dict[str, Any] = {}
        super()._save_to_state_dict(own, prefix, keep_vars)
        for ours, (theirs, to_theirs, _) in _LAYOUT.items():
            if prefix + ours in own:
                destination[prefix + theirs] = own.pop(prefix + ours).permute(to_theirs)  # a view, as torch's own alias
        destination.update(own)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # A parameter that is pruned or parametrized has another name and its own layout: torch's way, untranslated.
        if self.mask is None and prefix + "edge_mask" in state_dict:
            if is_sharded(self.coef) and not is_sharded(state_dict[prefix + "edge_mask"]):
                error_msgs.append(f"{prefix}edge_mask: expected a DTensor for a sharded layer without a mask, got a tensor")
            self.mask = torch.ones_like(self.coef.detach()[:, 0])  # sharded as coef is
        own = self._parameters | self._buffers
        present = {ours: names for ours, names in _LAYOUT.items() if own.get(ours) is not None}
        theirs_to_ours = {prefix + theirs: (ours, to_ours) for ours, (theirs, _, to_ours) in present.items()}
        assigned = local_metadata.get("assign_to_params_buffers", False)
        translated: dict[str, Any] = {}
        for key, value in state_dict.items():
            ours, to_ours = theirs_to_ours.get(key, (None, ()))
            named = key.removeprefix(prefix) if key.startswith(prefix) else ""
            if named in present and prefix + present[named][0] in state_dict:
                # torch.distributed.checkpoint adds the layer's own to a full state_dict.
                if strict and value is not own[named]:
                    unexpected_keys.append(key)
            elif ours is None:
                translated[key] = value
            elif value.dim() != len(to_ours):
                error_msgs.append(f"{key}: expected {len(to_ours)} dimensions, got shape {tuple(value.shape)}")
                translated[prefix + ours] = getattr(self, ours)
            else:
                value = value.permute(to_ours)
                translated[prefix + ours] = (
                    contiguous(value) if assigned else value
                )  # parameters are; others pack at every call
        if prefix + "grid" in translated:
            grid = translated[prefix + "grid"]
            if tuple(grid.shape) == tuple(self.grid.shape):
                grid = local(grid).to(self.grid.dtype)
                check_grid(grid, len(grid), self.spline_order)
        missing: list[str] = []
        errors: list[str] = []
        super()._load_from_state_dict(translated, prefix, local_metadata, strict, missing, unexpected_keys, errors)
        for ours, (theirs, _, _) in _LAYOUT.items():
            missing = [prefix + theirs if key == prefix + ours else key for key in missing]
            errors = [error.replace(f"{prefix}{ours}:", f"{prefix}{theirs} (as {ours}, permuted):") for error in errors]
        missing_keys.extend(missing)
        error_msgs.extend(errors)
