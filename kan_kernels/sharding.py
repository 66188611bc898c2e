"""A tensor's part on this rank: what layers need of DTensors, without importing torch.distributed, which takes its time."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn


def is_sharded(tensor: Tensor | None) -> bool:
    """Whether it is a DTensor."""
    return hasattr(type(tensor), "to_local")  # of the type, which torch.compile can tell


def local(tensor: Any) -> Any:
    """A DTensor's part on this rank; any other tensor, or None, as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A DTensor with all its parts, on every rank; any other tensor as it is. Differentiable."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def check_whole(method: str, net: nn.Module) -> None:
    """Raise ValueError unless every parameter is here."""
    if any(is_sharded(parameter) for parameter in net.parameters()):
        raise ValueError(
            f"{method}: expected a net that is not sharded; a whole one can load what torch.distributed.checkpoint's"
            " get_model_state_dict gathers with full_state_dict=True"
        )


def check_not_fully_sharded(method: str, module: nn.Module) -> None:
    """Raise ValueError for a module of `fully_shard`: its parameters are parts, or copies that nothing keeps."""
    if hasattr(module, "unshard"):
        raise ValueError(f"{method}: expected a module that fully_shard did not shard; move the grids before")


def own_part(value: Tensor, like: Tensor) -> Tensor:
    """Of a whole value, which every rank has, the part that this rank has of `like`."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    target = cast(Any, like)
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None).to_local()


def parts_as(part: Tensor, like: Tensor, dim: int, size: int) -> Tensor:
    """Every rank's part as a tensor sharded as `like`, but for the size of its dimension `dim`."""
    if not is_sharded(like):
        return part
    target = cast(Any, like)
    shape = [size if d == dim else n for d, n in enumerate(like.shape)]
    return of_parts(part, target.device_mesh, target.placements, shape)


def of_parts(part: Tensor, mesh: Any, placements: Sequence[Any], shape: Sequence[int]) -> Any:
    """The contiguous DTensor of a shape of which every rank has a part; the parts may be of different sizes."""
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)


class Whole:
    """The sharding of a layer that no parallel style shards: inputs, outputs and norms are whole already."""

    mesh = None

    def own_input(self, x: Tensor) -> Tensor:
        return x

    whole_input = own_features = whole_output = whole_norms = own_input


def share_random_state(tensor: Tensor) -> None:
    """Before all ranks draw a sharded tensor's whole: continue the first rank's random numbers on all of them."""
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
