"""pykan's search for formulas on an accelerated network, by `symbolic.affine_fit`."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ...reference import FORMULAS
from ...symbolic import AffineFit, affine_fit
from ...symbolic.library import ALIASES

MASKED = -1e8  # the r2 that pykan returns for a masked edge
_remembered = threading.local()


@contextmanager
def remembered_fits() -> Iterator[None]:
    """Within this context, an edge and a function are fitted once, for the same range."""
    before = getattr(_remembered, "fits", None)
    _remembered.fits = {} if before is None else before
    try:
        yield
    finally:
        _remembered.fits = before


def formula_name(name: str, fun: Callable[[Tensor], Tensor]) -> str | None:
    """Return the name of pykan's own function in `FORMULAS`, or "0", and None for other functions of any name."""
    known = ALIASES.get(name, name)
    return known if known in (*FORMULAS, "0") and getattr(fun, "__module__", None) == "kan.utils" else None


def fix_edge(net: Any, l: int, i: int, j: int, name: str, ranges: tuple[Any, Any], verbose: bool) -> Any:
    """Fix the edge from input i to output j of layer l to a library function, fitted to the last forward. Return its r2."""
    from kan.utils import SYMBOLIC_LIB

    fun, formula, _, avoiding = SYMBOLIC_LIB[name]
    layer, place = net.symbolic_fun[l], (net, l, i, j)
    fit = _fit(place, fun, formula_name(name, fun), ranges)
    if verbose:
        _print(fit)
    layer.funs_sympy[j][i] = formula
    layer.funs_name[j][i] = name
    layer.funs[j][i] = fun
    layer.funs_avoid_singularity[j][i] = avoiding
    layer.affine.data[j][i] = fit.parameters
    return MASKED if net.act_fun[l].mask[i, j] == 0 else fit.r2


def _fit(place: tuple[Any, int, int, int], fun: Callable[[Tensor], Tensor], formula: str | None, ranges: Any) -> AffineFit:
    net, l, i, j = place
    fits = getattr(_remembered, "fits", None)
    key = (id(net), l, i, j, formula or fun, *(float(end) for ends in ranges for end in ends))
    if fits is not None and key in fits:
        return fits[key]
    a_range, b_range = ranges
    fit = affine_fit(net.acts[l][:, i], net.spline_postacts[l][:, j, i], fun, a_range, b_range, formula)
    if fits is not None:
        fits[key] = fit
    return fit


def _print(fit: AffineFit) -> None:
    """Print what pykan's `fit_params` prints."""
    if fit.at_boundary:
        print("Best value at boundary.")
    print(f"r2 is {fit.r2}")
    if fit.r2 < 0.9:
        print("r2 is not very high, please double check if you are choosing the correct symbolic function.")
