"""`SymbolicKAN`: a network whose edges are functions of a library with trainable parameters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..utils.checks import check_layer_dtype, check_size
from .library import Function
from .suggest import Candidate

if TYPE_CHECKING:
    import sympy

_SHOWN = 3  # alternatives in the text of a report


class ReportedEdge(NamedTuple):
    """An edge of a report: from `in_feature` to `out_feature` of layer `layer`.

    Attributes:
        function: the name of its function, or None if the edge is still a spline.
        r2: of the best candidate when it was fitted; later training does not change it.
        candidates: all fits, in the order of `suggest`.
    """

    layer: int
    out_feature: int
    in_feature: int
    function: str | None
    r2: float
    candidates: list[Candidate]


class Report(list[ReportedEdge]):
    """What `KAN.symbolic` chose for every edge that is not masked. Its string form is a table."""

    def __str__(self) -> str:
        rows = [("layer", "out", "in", "function", "r2", "alternatives (r2)")]
        for edge in self:
            others = [f"{other.name} ({other.r2:.6f})" for other in edge.candidates if other.name != edge.function]
            place = (str(edge.layer), str(edge.out_feature), str(edge.in_feature))
            rows.append((*place, edge.function or "(spline)", f"{edge.r2:.9f}", ", ".join(others[:_SHOWN])))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


class SymbolicLayer(nn.Module):
    """A layer of a `SymbolicKAN`: y[..., o] = sum_i ( c f(a x[..., i] + b) + d ) + spline(x)[..., o], (..., I) -> (..., O).

    a, b, c, d and f belong to the edge (o, i). An edge without f contributes nothing.

    Attributes:
        affine: (O, I, 4), a parameter: a, b, c, d of every edge; zeros where there is no function.
        spline: the layer of the edges that are still splines, or None.

    Equivalent to, for one edge:
        a, b, c, d = layer.affine[o, i]
        phi = c * f(a * x[..., i] + b) + d
    """

    affine: nn.Parameter

    def __init__(self, functions: Sequence[Sequence[Function | None]], affine: Tensor, spline: nn.Module | None) -> None:
        """functions: O sequences of I functions, None for edges without one."""
        super().__init__()
        self.affine = nn.Parameter(affine.detach().clone())
        self.spline = spline
        self._functions = [list(row) for row in functions]
        self._edges: dict[Function, tuple[list[int], list[int]]] = {}  # outputs and inputs of the edges of each function
        for o, row in enumerate(functions):
            for i, function in enumerate(row):
                if function is not None:
                    of_outputs, of_inputs = self._edges.setdefault(function, ([], []))
                    of_outputs.append(o)
                    of_inputs.append(i)

    def function(self, out_feature: int, in_feature: int) -> Function | None:
        """Return the function of an edge, or None if it is masked or still a spline."""
        return self._functions[out_feature][in_feature]

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: x (..., I) -> (..., O)."""
        outputs, inputs = self.affine.shape[:2]
        check_layer_dtype(x, self.affine)
        if x.dim() < 1 or x.shape[-1] != inputs:
            raise ValueError(f"x: expected {inputs} features in the last dimension, got shape {tuple(x.shape)}")
        y = x.new_zeros((*x.shape[:-1], outputs)) if self.spline is None else self.spline(x)
        for function, (of_outputs, of_inputs) in self._edges.items():
            a, b, c, d = self.affine[of_outputs, of_inputs].unbind(-1)
            values = c * function.function(a * x[..., of_inputs] + b) + d
            y = y.index_add(-1, torch.tensor(of_outputs, device=x.device), values)
        return y

    def extra_repr(self) -> str:
        return f"in_features={self.affine.shape[1]}, out_features={self.affine.shape[0]}"


class SymbolicKAN(nn.Module):
    """A network of fixed functions with trainable parameters, as returned by `KAN.symbolic`.

    Train it like any module to refine the constants, then call `formula`. Outside the domain of a function, e.g. "log" of a
    negative number, its value is NaN.

    Attributes:
        layers: a `SymbolicLayer` for every layer of the network.
    """

    def __init__(self, layers: Sequence[SymbolicLayer], report: Report) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._report = report

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network: x (..., I) -> (..., O)."""
        for layer in self.layers:
            x = layer(x)
        return x

    def report(self) -> Report:
        """Return a `ReportedEdge` for every edge that is not masked. `print(net.report())` prints a table."""
        return self._report

    @property
    def functions(self) -> dict[tuple[int, int, int], str]:
        """The names of the functions by (layer, out_feature, in_feature), e.g. for `edge_labels` of `plot`."""
        return {(e.layer, e.out_feature, e.in_feature): e.function for e in self._report if e.function is not None}

    def formula(self, in_names: Sequence[str] | None = None, digits: int | None = None) -> "list[sympy.Expr]":
        """Return the network's outputs as SymPy expressions of its inputs, with the current parameters.

        Args:
            in_names: I names of SymPy symbols, by default x_0, x_1, ...
            digits: the significant digits of the constants, at least 1; None for all.

        Raises:
            ImportError: SymPy is not installed (`pip install kan_kernels[symbolic]`).
            TypeError, ValueError: an argument is invalid, or edges are still splines; the message names them.
        """
        try:
            import sympy
        except ImportError as error:
            raise ImportError("SymbolicKAN.formula needs SymPy: pip install kan_kernels[symbolic]") from error
        splines = [f"({e.layer}, {e.out_feature}, {e.in_feature})" for e in self._report if e.function is None]
        if splines:
            raise ValueError(
                f"formula: expected a function for every edge, got splines at (layer, out_feature, in_feature) ="
                f" {', '.join(splines)}; prune them, train longer, or lower r2_threshold of KAN.symbolic"
            )
        if digits is not None:
            check_size("digits", digits, 1)
        values: list[Any] = list(sympy.symbols(self._input_names(in_names)))
        for layer in self._symbolic_layers():
            values = [_sum_of_edges(layer, o, values) for o in range(layer.affine.shape[0])]
        return values if digits is None else [_rounded(value, digits) for value in values]

    def _symbolic_layers(self) -> list[SymbolicLayer]:
        return [layer for layer in self.layers if isinstance(layer, SymbolicLayer)]

    def _input_names(self, names: Any) -> list[str]:
        count = self._symbolic_layers()[0].affine.shape[1]
        if names is None:
            return [f"x_{i}" for i in range(count)]
        if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"in_names: expected a sequence of strings, got {names!r}")
        if len(names) != count:
            raise ValueError(f"in_names: expected {count} names, got {len(names)}")
        return list(names)


def _sum_of_edges(layer: SymbolicLayer, out_feature: int, inputs: Sequence[Any]) -> "sympy.Expr":
    import sympy

    total: Any = sympy.Integer(0)
    for i, value in enumerate(inputs):
        function = layer.function(out_feature, i)
        if function is None:
            continue
        a, b, c, d = (_number(number) for number in layer.affine[out_feature, i].tolist())
        expression = function.expression or sympy.Function(function.name)
        total += c * expression(a * value + b) + d
    return total


def _number(value: float, digits: int | None = None) -> "sympy.Expr":
    import sympy

    value = value if digits is None else float(f"{value:.{digits}g}")
    return sympy.Integer(int(value)) if value in (-1, 0, 1) else sympy.Float(value, digits)


def _rounded(expression: Any, digits: int) -> "sympy.Expr":
    import sympy

    return expression.xreplace({number: _number(float(number), digits) for number in expression.atoms(sympy.Float)})
