"""The baselines that the KAN layer is timed against.

A baseline computes the forward and one training step of a case. A training step is the forward and, given dloss/dy = g, the
gradients of x and of all parameters, without an optimizer.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import real_peers
import torch
from cases import Case, Tensors
from torch import Tensor
from torch.nn import functional as F

import kan_kernels as kk
from kan_kernels import reference

PYKAN_BYTES = {"cpu": 2e9, "cuda": 8e9}  # pykan keeps at least three (N, I, O) tensors; larger cases take too long


class Unavailable(Exception):
    """Raised if a baseline cannot be timed here; the message is the reason."""


class Baseline(Protocol):
    """An implementation to time."""

    name: str
    version: str  # the version of another library, or ""

    def forward(self) -> Tensor: ...

    def step(self) -> Sequence[Tensor]: ...


@dataclass
class Layer:
    """A layer that autograd differentiates."""

    name: str
    compute: Callable[[], Tensor]
    leaves: Sequence[Tensor]  # x and the parameters
    g: Tensor  # (N, O)
    version: str = ""

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.compute()

    def step(self) -> Sequence[Tensor]:
        return torch.autograd.grad(self.compute(), self.leaves, self.g)


@dataclass
class Products:
    """The three matrix products of a linear layer's step, without autograd."""

    name: str
    products: Sequence[Callable[[], Tensor]]  # y, the gradient of x, the gradient of the weight
    version: str = ""

    def forward(self) -> Tensor:
        return self.products[0]()

    def step(self) -> Sequence[Tensor]:
        return [product() for product in self.products]


def _kan_layer(name: str, function: Callable[..., Tensor], t: Tensors) -> Layer:
    leaves = [leaf.detach().requires_grad_() for leaf in (t.x, t.spline_weight, t.base_weight) if leaf is not None]
    x, spline_weight, *base_weight = leaves
    return Layer(name, lambda: function(x, spline_weight, t.grid, *base_weight), leaves, t.g)


def kan_kernels(name: str, case: Case, t: Tensors) -> Layer:
    return _kan_layer(name, kk.kan_linear, t)


def plain(name: str, case: Case, t: Tensors) -> Layer:
    """The library's reference under autograd. It multiplies dense bases by a matrix, like efficient-kan."""
    return _kan_layer(name, reference.kan_linear, t)


def compiled(name: str, case: Case, t: Tensors) -> Layer:
    # By default, torch compiles for any size from the second shape on and stops compiling after eight shapes.
    torch.compiler.reset()
    return _kan_layer(name, torch.compile(reference.kan_linear, dynamic=False), t)


def pykan(name: str, case: Case, t: Tensors) -> Layer:
    """pykan's KANLayer with the knots and coefficients of the case, so that it computes the same function."""
    try:
        import kan
    except ImportError as error:
        raise Unavailable(f"not installed: {error}") from error
    size = 3 * 4 * case.N * case.I * case.O
    if size > PYKAN_BYTES[t.x.device.type]:
        raise Unavailable(f"its (N, I, O) tensors would take {size / 1e9:.1f} GB")
    # The constructor solves a least-squares problem per edge, so build a layer of one edge and then set all of them.
    layer = kan.KANLayer(in_dim=1, out_dim=1, num=case.G, k=case.K)
    layer.in_dim, layer.out_dim = case.I, case.O
    ones = t.grid.new_ones(case.I, case.O)
    constants = {"grid": t.grid, "mask": ones}
    trained = {
        "coef": t.spline_weight.transpose(0, 1).contiguous(),
        "scale_base": t.base_weight.t().contiguous(),
        "scale_sp": ones,
    }
    for key, value in (constants | trained).items():
        setattr(layer, key, torch.nn.Parameter(value, requires_grad=key in trained))
    x = t.x.detach().requires_grad_()
    leaves = [x, *(getattr(layer, key) for key in trained)]
    return Layer(name, lambda: layer(x)[0], leaves, t.g, importlib.metadata.version("pykan"))


def _of_module(name: str, module: torch.nn.Module, t: Tensors, version: str) -> Layer:
    module.to(t.x.device)
    x = t.x.detach().requires_grad_()
    return Layer(name, lambda: module(x), [x, *(p for p in module.parameters() if p.requires_grad)], t.g, version)


def efficient_kan(name: str, case: Case, t: Tensors) -> Layer:
    """The real efficient-kan's KANLinear with the knots and coefficients of the case."""
    module, version = _imported(real_peers.efficient_kan)
    layer = module.KANLinear(case.I, case.O, grid_size=case.G, spline_order=case.K)
    state = {"grid": t.grid, "base_weight": t.base_weight, "spline_weight": t.spline_weight}
    layer.load_state_dict(state | {"spline_scaler": torch.ones(case.O, case.I)})
    return _of_module(name, layer, t, version)


def inkan(name: str, case: Case, t: Tensors) -> Layer:
    """inkan's KANLayer of the same sizes with its own weights. By default, it compiles the evaluation of the bases."""
    if case.K != 3 or case.knots != "uniform":
        raise Unavailable("it has uniform cubic splines only")
    module, version = _imported(real_peers.inkan)
    torch.compiler.reset()
    return _of_module(name, module.KANLayer(case.I, case.O, grid_size=case.G), t, version)


def fast_kan(name: str, case: Case, t: Tensors) -> Layer:
    """fast-kan's layer with as many radial basis functions as the case has B-splines. It computes another function."""
    if case.I == 1:
        raise Unavailable("its layer norm needs more than one input")
    module, version = _imported(real_peers.fast_kan)
    return _of_module(name, module.FastKANLayer(case.I, case.O, num_grids=case.M), t, version)


def _imported(find: Callable[[], tuple[Any, str]]) -> tuple[Any, str]:
    try:
        return find()
    except real_peers.Missing as error:
        raise Unavailable(str(error)) from error


def _linear_operands(case: Case, t: Tensors, features: int | None = None) -> tuple[Tensor, Tensor]:
    """Return x and weight of a linear layer with `features` inputs, or with as many parameters as the KAN layer."""
    features = features or case.I * (case.M + 1)
    like = {"device": t.x.device, "dtype": t.x.dtype}
    return torch.randn(case.N, features, **like), torch.randn(case.O, features, **like)


def linear(name: str, case: Case, t: Tensors, features: int | None = None) -> Layer:
    x, weight = _linear_operands(case, t, features)
    layer = torch.nn.Linear(x.shape[1], case.O, bias=False, device=x.device, dtype=x.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    x.requires_grad_()
    return Layer(name, lambda: layer(x), [x, layer.weight], t.g)


def linear_of_equal_width(name: str, case: Case, t: Tensors) -> Layer:
    return linear(name, case, t, case.I)


def torch_products(name: str, case: Case, t: Tensors) -> Products:
    (x, weight), g = _linear_operands(case, t), t.g
    return Products(name, [lambda: F.linear(x, weight), lambda: g @ weight, lambda: g.t() @ x])


def onednn_products(name: str, case: Case, t: Tensors) -> Products:
    """oneDNN computes a @ b.T, so the operands are transposed where needed, outside of the timing."""
    if not torch.backends.mkldnn.is_available():
        raise Unavailable("torch was built without oneDNN")
    (x, weight), g = _linear_operands(case, t), t.g
    x_t, weight_t, g_t = (operand.t().contiguous() for operand in (x, weight, g))

    def product(a: Tensor, b: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")

    return Products(name, [lambda: product(x, weight), lambda: product(g, weight_t), lambda: product(g_t, x_t)])


BASELINES: dict[str, Callable[[str, Case, Tensors], Baseline]] = {
    "kan_kernels": kan_kernels,
    "reference": plain,
    "reference + torch.compile": compiled,
    "nn.Linear": linear,
    "nn.Linear(I, O)": linear_of_equal_width,
    "three GEMMs, torch": torch_products,
    "three GEMMs, oneDNN": onednn_products,
    "pykan": pykan,
    "efficient-kan": efficient_kan,
    "inkan": inkan,
    "fast-kan": fast_kan,
}


def build(name: str, case: Case, t: Tensors) -> Baseline:
    """Build the named baseline on the tensors of the case. Raises Unavailable with the reason."""
    return BASELINES[name](name, case, t)
