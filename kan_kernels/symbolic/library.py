"""The functions that the search for formulas can choose, with pykan's names and complexities."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..reference import FORMULAS

if TYPE_CHECKING:
    import sympy


@dataclass(frozen=True, eq=False)
class Function:
    """A function f of one variable, which the search fits as c f(a x + b) + d.

    Attributes:
        name: how results refer to it.
        function: an elementwise, differentiable function of a tensor of any shape.
        expression: f of a SymPy expression, or None if `SymbolicKAN.formula` shall write `name(...)`.
        complexity: >= 0; the search prefers small numbers. pykan's functions have 0 to 4.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    expression: "Callable[[Any], sympy.Expr] | None" = None
    complexity: float = 3

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the library's functions, which are lambdas, by name."""
        if is_in_library(self):
            return _of_library, (self.name,)
        return Function, (self.name, self.function, self.expression, self.complexity)


def _of_library(name: str) -> Function:
    return LIBRARY[name]


def _from_sympy(name: str) -> Callable[[Any], Any]:
    def expression(z: Any) -> Any:
        import sympy

        return getattr(sympy, name)(z)

    return expression


def _power(exponent: int) -> Callable[[Any], Any]:
    return lambda z: z**exponent


def _root(exponent: int) -> Callable[[Any], Any]:
    return lambda z: _from_sympy("sqrt")(z) ** exponent


_EXPRESSIONS: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "x": (1, _power(1)),
    "x^2": (2, _power(2)),
    "x^3": (3, _power(3)),
    "x^4": (3, _power(4)),
    "x^5": (3, _power(5)),
    "1/x": (2, _power(-1)),
    "1/x^2": (2, _power(-2)),
    "1/x^3": (3, _power(-3)),
    "1/x^4": (4, _power(-4)),
    "1/x^5": (5, _power(-5)),
    "sqrt": (2, _root(1)),
    "x^1.5": (4, _root(3)),
    "1/sqrt(x)": (2, _root(-1)),
    "exp": (2, _from_sympy("exp")),
    "log": (2, _from_sympy("log")),
    "abs": (3, _from_sympy("Abs")),
    "sin": (2, _from_sympy("sin")),
    "cos": (2, _from_sympy("cos")),
    "tan": (3, _from_sympy("tan")),
    "tanh": (3, _from_sympy("tanh")),
    "sgn": (3, _from_sympy("sign")),
    "arcsin": (4, _from_sympy("asin")),
    "arccos": (4, _from_sympy("acos")),
    "arctan": (4, _from_sympy("atan")),
    "arctanh": (4, _from_sympy("atanh")),
    "gaussian": (3, lambda z: _from_sympy("exp")(-(z**2))),
}
ZERO = "0"  # the constant
LIBRARY: dict[str, Function] = {
    ZERO: Function(ZERO, lambda z: 0 * z, lambda z: 0 * z, 0),
    **{name: Function(name, FORMULAS[name], of_sympy, cost) for name, (cost, of_sympy) in _EXPRESSIONS.items()},
}
ALIASES = {"x^0.5": "sqrt", "1/x^0.5": "1/sqrt(x)"}  # functions that pykan's library has twice

# f(s z) = |s|^p f(z) or s^p f(z), so that a and c describe one degree of freedom
_POWERS: dict[str, float] = {
    "x": 1,
    "x^2": 2,
    "x^3": 3,
    "x^4": 4,
    "x^5": 5,
    "abs": 1,
    "sqrt": 0.5,
    "x^1.5": 1.5,
    "1/sqrt(x)": -0.5,
}
_ODD, _EVEN = ("sin", "tan", "tanh", "sgn", "arcsin", "arctan", "arctanh"), ("cos", "gaussian")
_POWERS |= {"1/x": -1, "1/x^2": -2, "1/x^3": -3, "1/x^4": -4, "1/x^5": -5}


def chosen_functions(lib: Any) -> list[Function]:
    """Return the functions of the argument `lib`: None for the whole library, or an iterable of names and `Function` objects.

    Raises:
        TypeError: lib is neither, or one of its items is neither.
        ValueError: lib is empty, has an unknown name, or has a name twice for different functions.
    """
    if lib is None:
        return list(LIBRARY.values())
    if isinstance(lib, str | Function) or not isinstance(lib, Iterable):
        raise TypeError(f"lib: expected a sequence of names and Functions, got {type(lib).__name__}")
    functions: dict[str, Function] = {}
    for position, item in enumerate(lib):
        function = _checked(f"lib[{position}]", item)
        if functions.setdefault(function.name, function) is not function:
            raise ValueError(f"lib[{position}]: expected a new name, got {function.name!r} a second time")
    if not functions:
        raise ValueError("lib: expected at least one function, got none")
    return list(functions.values())


def _checked(argument: str, item: Any) -> Function:
    if isinstance(item, str):
        name = ALIASES.get(item, item)
        if name not in LIBRARY:
            raise ValueError(f"{argument}: expected a Function or one of {', '.join(LIBRARY)}, got {item!r}")
        return LIBRARY[name]
    if not isinstance(item, Function):
        raise TypeError(f"{argument}: expected a name or a Function, got {type(item).__name__}")
    if not isinstance(item.name, str) or not callable(item.function):
        raise TypeError(f"{argument}: expected a Function of a string and a callable, got {item!r}")
    if not isinstance(item.complexity, int | float) or not 0 <= item.complexity < math.inf:
        raise ValueError(f"{argument}: expected a finite complexity >= 0, got {item.complexity!r}")
    return item


def is_in_library(function: Function) -> bool:
    """Return whether it is one of this library's own, which may have a kernel."""
    return LIBRARY.get(function.name) is function


def normalized(function: Function, a: float, b: float, c: float, d: float) -> tuple[float, float, float, float]:
    """Return the parameters of the same curve that the symmetries of a function of the library select.

    Powers have a = 1, roots, "abs" and "log" a = 1 or -1, "exp" b = 0, sines and cosines a > 0, c > 0 and b in [-pi, pi]. Odd
    and even functions have a > 0.
    """
    if not is_in_library(function) or a == 0:
        return a, b, c, d
    name, size = function.name, abs(a)
    power = _POWERS.get(name)
    try:
        if power is not None and (power % 1 or name == "abs"):
            return a / size, b / size, c * size**power, d
        if power is not None:
            return 1.0, b / a, c * a**power, d
        if name == "exp":
            return a, 0.0, c * math.exp(b), d
        if name == "log":
            return a / size, b / size, c, d + c * math.log(size)
    except OverflowError:
        return a, b, c, d  # the other form has no representable numbers
    if a < 0 and (name in _ODD or name in _EVEN):
        a, b, c = -a, -b, -c if name in _ODD else c
    if name in ("sin", "cos"):
        b, c = (b + math.pi, -c) if c < 0 else (b, c)
        b = math.remainder(b, 2 * math.pi)
    return a, b, c, d
