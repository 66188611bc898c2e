"""Tensor parallelism: how `torch.distributed.tensor.parallel.parallelize_module` shards a `KANLinear`.

The two styles are `ColwiseParallel`'s and `RowwiseParallel`'s, with their layouts, so that KAN and linear layers follow each
other in one plan. The parameters become DTensors; the kernels compute on each rank's part.
"""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from . import layers
from .checks import check_floating
from .layers import KANLinear

layers.SHARDED = (DTensor,)


class _Sharded(ParallelStyle):
    dim: ClassVar[int]  # of `coef` that is sharded
    inputs: ClassVar[Placement]
    outputs: ClassVar[Placement]

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
    ) -> None:
        super().__init__()
        self.input_layouts = input_layouts or self.inputs
        self.output_layouts = output_layouts or self.outputs
        self.use_local_output = use_local_output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, KANLinear):
            raise TypeError(f"module: expected a KANLinear for {type(self).__name__}, got {type(module).__name__}")
        if module.base_activation is not None and next(module.base_activation.parameters(), None) is not None:
            raise ValueError(f"module: expected a base activation without parameters, got {module.base_activation}")
        return distribute_module(
            module,
            device_mesh,
            self._partition,
            cast(Any, lambda layer, inputs, mesh: (self._local_input(inputs[0], layer, mesh), *inputs[1:])),
            cast(Any, lambda layer, y, mesh: self._laid_out(self._gathered(y, layer, mesh), mesh)),
        )

    def _partition(self, name: str, layer: nn.Module, mesh: DeviceMesh) -> None:
        if not isinstance(layer, KANLinear):
            return  # a base activation
        for key in ("coef", "base_coef", "scaler"):
            parameter = getattr(layer, key)
            if parameter is not None:
                sharded = distribute_tensor(parameter, mesh, [Shard(self.dim % parameter.dim())])
                setattr(layer, key, nn.Parameter(sharded, requires_grad=parameter.requires_grad))
        if layer.mask is not None:
            layer.mask = distribute_tensor(layer.mask, mesh, [Shard(self.dim % 2)])
        if self.dim == 0:
            layer.grid = distribute_tensor(layer.grid, mesh, [Shard(0)])

    def _local_input(self, x: Any, layer: KANLinear, mesh: DeviceMesh) -> Tensor:
        raise NotImplementedError

    def _dtensor(self, x: Any, layer: KANLinear, mesh: DeviceMesh) -> DTensor:
        """The layer's input, checked on every rank: one that raises alone leaves the others waiting."""
        check_floating("x", x)
        x = _as_dtensor(x, mesh, self.input_layouts, layer.in_features)
        if x.dim() < 1 or x.shape[-1] != layer.in_features:
            raise ValueError(f"x: expected {layer.in_features} features in the last dimension, got shape {tuple(x.shape)}")
        return x

    def _gathered(self, y: Tensor, layer: KANLinear, mesh: DeviceMesh) -> DTensor:
        raise NotImplementedError

    def _laid_out(self, y: DTensor, mesh: DeviceMesh) -> Tensor:
        layout = self.output_layouts
        y = y.redistribute(mesh, [Shard(layout.dim % y.dim()) if isinstance(layout, Shard) else layout])
        return y.to_local() if self.use_local_output else y


class ColwiseKAN(_Sharded):
    """Shard a `KANLinear` by its out_features: every rank computes O / ranks outputs from all inputs.

    Args:
        input_layouts: of the layer's input, `Replicate()` unless given; other layouts are gathered first.
        output_layouts: wanted of its output, `Shard(-1)` unless given.
        use_local_output: return each rank's tensor, else a DTensor.

    Raises (when applied):
        TypeError: the module is no `KANLinear`.

    Equivalent to, on rank r of R:
        part = slice(r * O // R, (r + 1) * O // R)
        y[..., part] = kan_linear(x, coef[..., part], grid, base_coef[:, part], scaler=scaler[:, part])
    """

    dim, inputs, outputs = -1, Replicate(), Shard(-1)

    def _local_input(self, x: Any, layer: KANLinear, mesh: DeviceMesh) -> Tensor:
        x = self._dtensor(x, layer, mesh).redistribute(mesh, [Replicate()])
        return x.to_local(grad_placements=[Partial()])  # every rank's outputs give their part of the gradient

    def _gathered(self, y: Tensor, layer: KANLinear, mesh: DeviceMesh) -> DTensor:
        return _as_dtensor(y, mesh, Shard(-1), layer.out_features)


class RowwiseKAN(_Sharded):
    """Shard a `KANLinear` by its in_features: every rank computes what I / ranks inputs add to all outputs.

    Args:
        input_layouts: of the layer's input, `Shard(-1)` unless given: what `ColwiseKAN` and `ColwiseParallel` leave.
        output_layouts: wanted of its output, `Replicate()` unless given: the ranks' sums are added up.
        use_local_output: return each rank's tensor, else a DTensor.

    Raises (when applied):
        TypeError: the module is no `KANLinear`.

    Equivalent to, on rank r of R:
        part = slice(r * I // R, (r + 1) * I // R)
        y = all_reduce(kan_linear(x[..., part], coef[part], grid[part], base_coef[part], scaler=scaler[part]))
    """

    dim, inputs, outputs = 0, Shard(-1), Replicate()

    def _local_input(self, x: Any, layer: KANLinear, mesh: DeviceMesh) -> Tensor:
        x = self._dtensor(x, layer, mesh)
        return x.redistribute(mesh, [Shard(x.dim() - 1)]).to_local()

    def _gathered(self, y: Tensor, layer: KANLinear, mesh: DeviceMesh) -> DTensor:
        return DTensor.from_local(y, mesh, [Partial()], run_check=False)


def _as_dtensor(x: Any, mesh: DeviceMesh, placement: Placement, features: int) -> DTensor:
    """A rank's part of a tensor of `features` last dimensions as a DTensor; one that is a DTensor already, as it is."""
    if isinstance(x, DTensor):
        return x
    if not (isinstance(placement, Shard) and placement.dim in (-1, x.dim() - 1)):
        return DTensor.from_local(x, mesh, [placement], run_check=False)
    shape = torch.Size([*x.shape[:-1], features])  # ranks may have parts of different sizes
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(x, mesh, [Shard(x.dim() - 1)], run_check=False, shape=shape, stride=stride)
