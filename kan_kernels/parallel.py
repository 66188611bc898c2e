"""Tensor parallelism: styles for `torch.distributed.tensor.parallel.parallelize_module` that shard a `KANLinear`.

The two styles use the same layouts as `ColwiseParallel` and `RowwiseParallel`, so one plan can mix KAN and linear layers. The
parameters become DTensors, and the kernels run on each rank's local shard.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from .nn.linear import KANLinear
from .utils.checks import check_floating, check_parameters
from .utils.dtensor import of_parts


class _Sharded(ParallelStyle):
    dim: ClassVar[int]  # the sharded dimension of the parameters (O, I, ...)
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
        check_parameters(type(self).__name__, module, "base_weight", "spline_weight", "spline_scaler")
        module.sharding = sharding = LayerSharding(self, device_mesh, module.in_features, module.out_features)
        return distribute_module(
            module,
            device_mesh,
            self._partition,
            cast(Any, lambda layer, inputs, mesh: (sharding.own_input(inputs[0]), *inputs[1:])),
            cast(Any, lambda layer, y, mesh: sharding.laid_out_output(y)),
        )

    def _partition(self, name: str, layer: nn.Module, mesh: DeviceMesh) -> None:
        if not isinstance(layer, KANLinear):
            return  # the base activation is not sharded
        for key, parameter in list(layer.named_parameters(recurse=False)):
            sharded = distribute_tensor(parameter, mesh, [Shard(self.dim)])
            setattr(layer, key, nn.Parameter(sharded, requires_grad=parameter.requires_grad))
        if layer.edge_mask is not None:
            layer.edge_mask = distribute_tensor(layer.edge_mask, mesh, [Shard(self.dim)])
        if self.dim == 1:
            layer.grid = distribute_tensor(layer.grid, mesh, [Shard(0)])

    def own_input(self, x: DTensor) -> Tensor:
        """Return the input features of this rank's shard of the layer."""
        raise NotImplementedError

    def joined(self, y: Tensor, mesh: DeviceMesh, out_features: int) -> DTensor:
        """Combine the outputs of all ranks' shards into one DTensor."""
        raise NotImplementedError


@dataclass(frozen=True)
class LayerSharding:
    """Converts a sharded layer's inputs, outputs, norms and features between local shards and full tensors."""

    style: _Sharded
    mesh: DeviceMesh
    in_features: int
    out_features: int

    def own_input(self, x: Any) -> Tensor:
        """Return this rank's part of x, which has the layout of the forward's input. Gradients flow back to x.

        Every rank runs the same check: if only one rank raised, the others would wait forever.
        """
        return self.style.own_input(self._input(x))

    def whole_input(self, x: Any) -> Tensor:
        """Return the full x (..., I) on every rank. x has the layout of the forward's input."""
        return self._input(x).full_tensor()

    def _input(self, x: Any) -> DTensor:
        check_floating("x", x)
        x = _as_dtensor(x, self.mesh, self.style.input_layouts, self.in_features)
        if x.dim() < 1 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: expected {self.in_features} features in the last dimension, got shape {tuple(x.shape)}")
        return x

    def own_features(self, x: Tensor) -> Tensor:
        """Return the columns of x (N, I) whose knots this rank holds."""
        return distribute_tensor(x, self.mesh, [Shard(1)], src_data_rank=None).to_local() if self.style.dim == 1 else x

    def laid_out_output(self, y: Tensor) -> Tensor:
        """Convert the output of this rank's shard to the layer's output, following `output_layouts` and `use_local_output`."""
        layout = self.style.output_layouts
        joined = self.style.joined(y, self.mesh, self.out_features)
        joined = joined.redistribute(self.mesh, [Shard(layout.dim % y.dim()) if isinstance(layout, Shard) else layout])
        return joined.to_local() if self.style.use_local_output else joined

    def whole_output(self, y: Any) -> Tensor:
        """Return the layer's full output (..., O) on every rank."""
        return _as_dtensor(y, self.mesh, self.style.output_layouts, self.out_features).full_tensor()

    def whole_norms(self, norms: Tensor) -> Tensor:
        """Gather the norms of all edges (O, I) from the norms of this rank's edges."""
        size = (self.out_features, self.in_features)[self.style.dim]
        return _of_parts(norms, self.mesh, self.style.dim, size).full_tensor()


class ColwiseKAN(_Sharded):
    """Shard a `KANLinear` along its out_features. Every rank computes O / ranks outputs from all inputs.

    Args:
        input_layouts: the layout of the layer's input, default `Replicate()`. Other layouts are gathered first.
        output_layouts: the layout of the layer's output, default `Shard(-1)`.
        use_local_output: whether to return the local tensor instead of a DTensor.

    Raises (when applied):
        TypeError: the module is not a `KANLinear`.

    Equivalent to, on rank r of R:
        part = slice(r * O // R, (r + 1) * O // R)
        y[..., part] = kan_linear(x, spline_weight[part], grid, base_weight[part], spline_scaler=spline_scaler[part])
    """

    dim, inputs, outputs = 0, Replicate(), Shard(-1)

    def own_input(self, x: DTensor) -> Tensor:
        # The gradient of x is the sum of the ranks' contributions.
        return x.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])

    def joined(self, y: Tensor, mesh: DeviceMesh, out_features: int) -> DTensor:
        return _of_parts(y, mesh, y.dim() - 1, out_features)


class RowwiseKAN(_Sharded):
    """Shard a `KANLinear` along its in_features. Every rank computes the contribution of I / ranks inputs to all outputs.

    Args:
        input_layouts: the layout of the layer's input, default `Shard(-1)`, the output of `ColwiseKAN` and `ColwiseParallel`.
        output_layouts: the layout of the layer's output, default `Replicate()`: the ranks' contributions are summed.
        use_local_output: whether to return the local tensor instead of a DTensor.

    Raises (when applied):
        TypeError: the module is not a `KANLinear`.

    Equivalent to, on rank r of R:
        part = slice(r * I // R, (r + 1) * I // R)
        y = all_reduce(kan_linear(
            x[..., part], spline_weight[:, part], grid[part], base_weight[:, part], spline_scaler=spline_scaler[:, part]))
    """

    dim, inputs, outputs = 1, Shard(-1), Replicate()

    def own_input(self, x: DTensor) -> Tensor:
        return x.redistribute(placements=[Shard(x.dim() - 1)]).to_local()

    def joined(self, y: Tensor, mesh: DeviceMesh, out_features: int) -> DTensor:
        return DTensor.from_local(y, mesh, [Partial()], run_check=False)


def _as_dtensor(x: Any, mesh: DeviceMesh, placement: Placement, features: int) -> DTensor:
    """Wrap a rank's part of a tensor (..., features) in a DTensor. A DTensor is returned unchanged."""
    if isinstance(x, DTensor):
        return x
    if not (isinstance(placement, Shard) and placement.dim in (-1, x.dim() - 1)):
        return DTensor.from_local(x, mesh, [placement], run_check=False)
    return _of_parts(x, mesh, x.dim() - 1, features)


def _of_parts(part: Tensor, mesh: DeviceMesh, dim: int, size: int) -> DTensor:
    """Build a DTensor with `size` elements along `dim` from local parts, whose sizes may differ between ranks."""
    return of_parts(part, mesh, [Shard(dim)], [*part.shape[:dim], size, *part.shape[dim + 1 :]])
