"""DTensor helpers. torch.distributed is slow to import, so they only import it if a tensor is sharded."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn


def is_sharded(tensor: Tensor | None) -> bool:
    """Return whether the tensor is a DTensor."""
    return hasattr(type(tensor), "to_local")  # torch.compile can trace hasattr on the type


def local(tensor: Any) -> Any:
    """Return the local shard of a DTensor. Other tensors and None are returned unchanged."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor of a DTensor on every rank. Other tensors are returned unchanged. Differentiable."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def check_whole(method: str, net: nn.Module) -> None:
    """Raise ValueError if a parameter is sharded."""
    if any(is_sharded(parameter) for parameter in net.parameters()):
        raise ValueError(
            f"{method}: expected a net that is not sharded; use get_model_state_dict of torch.distributed.checkpoint with"
            " full_state_dict=True to load the parameters into an unsharded net"
        )


def check_not_fully_sharded(method: str, module: nn.Module) -> None:
    """Raise ValueError for a module sharded by `fully_shard`, whose parameters are shards or temporary copies."""
    if hasattr(module, "unshard"):
        raise ValueError(f"{method}: expected a module that is not sharded by fully_shard; change its grid first")


def own_part(value: Tensor, like: Tensor) -> Tensor:
    """Return the part of a full value that corresponds to this rank's shard of `like`."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    target = cast(Any, like)
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None).to_local()


def parts_as(part: Tensor, like: Tensor, dim: int, size: int) -> Tensor:
    """Build a tensor sharded like `like`, except for the size of dimension `dim`, from the local parts."""
    if not is_sharded(like):
        return part
    target = cast(Any, like)
    shape = [size if d == dim else n for d, n in enumerate(like.shape)]
    return of_parts(part, target.device_mesh, target.placements, shape)


def of_parts(part: Tensor, mesh: Any, placements: Sequence[Any], shape: Sequence[int]) -> Any:
    """Build a contiguous DTensor of the given shape from the ranks' local parts, whose sizes may differ."""
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)


class Unsharded:
    """The `sharding` of a layer without tensor parallelism. All methods return their argument."""

    mesh = None

    def own_input(self, x: Tensor) -> Tensor:
        return x

    whole_input = own_features = whole_output = whole_norms = own_input


def share_random_state(tensor: Tensor) -> None:
    """Copy the first rank's random state to all ranks of a sharded tensor, so that they draw the same numbers."""
    if not is_sharded(tensor) or tensor.device.type == "meta":
        return
    import torch.distributed as dist

    mesh, device = cast(Any, tensor).device_mesh, tensor.device
    on_cpu = device.type == "cpu"
    state = torch.get_rng_state() if on_cpu else torch.get_device_module(device).get_rng_state(device).to(device)
    for dim in range(mesh.ndim):
        dist.broadcast(state, group=mesh.get_group(dim), group_src=0)
    if on_cpu:
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state.cpu(), device)
