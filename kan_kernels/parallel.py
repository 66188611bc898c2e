"""Tensor parallelism: how `torch.distributed.tensor.parallel.parallelize_module` shards a `KANLinear`.

The two styles are `ColwiseParallel`'s and `RowwiseParallel`'s, with their layouts, so that KAN and linear layers follow each
other in one plan. The parameters become DTensors; the kernels compute on each rank's part.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from .checks import check_floating, check_parameters
from .layers import KANLinear
from .sharding import of_parts


class _Sharded(ParallelStyle):
    dim: ClassVar[int]  # of the parameters, (O, I, ...), that is sharded
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
            return  # a base activation
        for key, parameter in list(layer.named_parameters(recurse=False)):
            sharded = distribute_tensor(parameter, mesh, [Shard(self.dim)])
            setattr(layer, key, nn.Parameter(sharded, requires_grad=parameter.requires_grad))
        if layer.edge_mask is not None:
            layer.edge_mask = distribute_tensor(layer.edge_mask, mesh, [Shard(self.dim)])
        if self.dim == 1:
            layer.grid = distribute_tensor(layer.grid, mesh, [Shard(0)])

    def own_input(self, x: DTensor) -> Tensor:
        """The features that a rank's part of the layer takes."""
        raise NotImplementedError

    def joined(self, y: Tensor, mesh: DeviceMesh, out_features: int) -> DTensor:
        """What the ranks' parts of the layer computed, as one."""
        raise NotImplementedError


@dataclass(frozen=True)
class LayerSharding:
    """How a layer's inputs and outputs, norms and features are spread over a mesh: what it asks itself besides its forward."""

    style: _Sharded
    mesh: DeviceMesh
    in_features: int
    out_features: int

    def own_input(self, x: Any) -> Tensor:
        """Of x, laid out as for the forward, what this rank computes on; its gradient goes back where x's parts came from.

        Checked on every rank alike: one that raises alone leaves the others waiting.
        """
        return self.style.own_input(self._input(x))

    def whole_input(self, x: Any) -> Tensor:
        """x (..., I), laid out as for the forward, on every rank."""
        return self._input(x).full_tensor()

    def _input(self, x: Any) -> DTensor:
        check_floating("x", x)
        x = _as_dtensor(x, self.mesh, self.style.input_layouts, self.in_features)
        if x.dim() < 1 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: expected {self.in_features} features in the last dimension, got shape {tuple(x.shape)}")
        return x

    def own_features(self, x: Tensor) -> Tensor:
        """(N, I) -> the columns of this rank's knots."""
        return distribute_tensor(x, self.mesh, [Shard(1)], src_data_rank=None).to_local() if self.style.dim == 1 else x

    def laid_out_output(self, y: Tensor) -> Tensor:
        """What a rank's part computed -> the layer's output, as `output_layouts` and `use_local_output` say."""
        layout = self.style.output_layouts
        joined = self.style.joined(y, self.mesh, self.out_features)
        joined = joined.redistribute(self.mesh, [Shard(layout.dim % y.dim()) if isinstance(layout, Shard) else layout])
        return joined.to_local() if self.style.use_local_output else joined

    def whole_output(self, y: Any) -> Tensor:
        """The layer's output (..., O) on every rank."""
        return _as_dtensor(y, self.mesh, self.style.output_layouts, self.out_features).full_tensor()

    def whole_norms(self, norms: Tensor) -> Tensor:
        """(O, I) from the norms of this rank's edges."""
        size = (self.out_features, self.in_features)[self.style.dim]
        return _of_parts(norms, self.mesh, self.style.dim, size).full_tensor()


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
        y[..., part] = kan_linear(x, spline_weight[part], grid, base_weight[part], spline_scaler=spline_scaler[part])
    """

    dim, inputs, outputs = 0, Replicate(), Shard(-1)

    def own_input(self, x: DTensor) -> Tensor:
        # Every rank's outputs give their part of the gradient.
        return x.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])

    def joined(self, y: Tensor, mesh: DeviceMesh, out_features: int) -> DTensor:
        return _of_parts(y, mesh, y.dim() - 1, out_features)


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
        y = all_reduce(kan_linear(
            x[..., part], spline_weight[:, part], grid[part], base_weight[:, part], spline_scaler=spline_scaler[:, part]))
    """

    dim, inputs, outputs = 1, Shard(-1), Replicate()

    def own_input(self, x: DTensor) -> Tensor:
        return x.redistribute(placements=[Shard(x.dim() - 1)]).to_local()

    def joined(self, y: Tensor, mesh: DeviceMesh, out_features: int) -> DTensor:
        return DTensor.from_local(y, mesh, [Partial()], run_check=False)


def _as_dtensor(x: Any, mesh: DeviceMesh, placement: Placement, features: int) -> DTensor:
    """A rank's part of a tensor of `features` last dimensions as a DTensor; one that is a DTensor already, as it is."""
    if isinstance(x, DTensor):
        return x
    if not (isinstance(placement, Shard) and placement.dim in (-1, x.dim() - 1)):
        return DTensor.from_local(x, mesh, [placement], run_check=False)
    return _of_parts(x, mesh, x.dim() - 1, features)


def _of_parts(part: Tensor, mesh: DeviceMesh, dim: int, size: int) -> DTensor:
    """A DTensor of `size` along `dim`, of which ranks may have parts of different sizes."""
    return of_parts(part, mesh, [Shard(dim)], [*part.shape[:dim], size, *part.shape[dim + 1 :]])
