"""Comparison of a module's own forward with the fused forward, before its class is replaced.

The comparison uses copies of the module with changed parameters, so that edges which are zero or masked are compared too. They
have all its edges, because a forward may depend on the sizes. The copies of a very large layer have a few of its inputs and
outputs, and a last comparison, of outputs for a few rows, uses all its edges and its own parameters.
"""

import copy
import inspect
import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

POINTS = 11
TOLERANCE = 1e-8  # relative, in float64: it detects a bias of 1e-4
_SMALL = 1 << 20  # coefficients: the copies of a layer with at most as many have all its edges
# (training mode, fraction of the parameters' elements that are changed). Layers such as dropout depend on the mode. One pass
# changes half of the elements, since a forward may treat small values specially, and the other changes all.
_PASSES = ((False, 0.5), (True, 1.0))

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OF_EVERY_MODULE = vars(nn.Module()).keys()
_PLAIN = (bool, int, float, str)

Numbers = Callable[[Any], list[Tensor]]
Call = Callable[[Any, Tensor], Sequence[Tensor]]  # a forward of a layer, called with the layer and x
Kind = tuple[Any, ...]


def probe_inputs(grid: Tensor) -> Tensor:
    """Return inputs (11, I), float64, over and beyond the range of the knots (I, T), in a different order per feature."""
    low, high = grid[:, :1].double(), grid[:, -1:].double()
    row = torch.arange(POINTS, dtype=torch.float64, device=grid.device)
    feature = torch.arange(grid.shape[0], dtype=torch.float64, device=grid.device).unsqueeze(1)
    place = (row * 0.381966 + feature * 0.7548777) % 1 * 1.1 - 0.05
    return torch.lerp(low, high, place).t()


@lru_cache(maxsize=32)
def extreme_inputs(features: int, device: torch.device, with_nan: bool = True) -> Tensor:
    """Return inputs (6, features), float64, or 5 rows without NaN, that reveal a clamp or nan_to_num before the layer.

    They must not be changed in place.
    """
    values = [1e3, -1e3, 30.0, -30.0, 0.0, *([float("nan")] if with_nan else [])]
    return torch.tensor(values, dtype=torch.float64, device=device).unsqueeze(1).repeat(1, features)


def spread(count: int, kept: int) -> list[int]:
    """Return at most `kept` indices of `count` inputs or outputs: the first, the last, and some between."""
    kept = min(count, kept)
    return [round(index * (count - 1) / max(kept - 1, 1)) for index in range(kept)]


def compared_edges(grid: Tensor, weight_shape: torch.Size) -> tuple[list[int], list[int]]:
    """Return the inputs and outputs of the edges that copies of a layer keep: all, or a few if the layer is large.

    Among the few is the input with the closest, equal or unordered knots (I, T). A copy of a square layer is square, and one
    of a wide or narrow layer is wide or narrow, because forwards exist that add x to y if the layer is square.

    Args:
        grid: knots (I, T).
        weight_shape: (O, I, M).
    """
    O, I, _ = weight_shape
    if weight_shape.numel() <= _SMALL:
        return list(range(I)), list(range(O))
    inputs = spread(I, 2)
    if I > 2:
        steps = grid.detach().diff(dim=1)
        inputs = sorted({*inputs, int((steps.amin(1) / steps.amax(1)).argmin())})
    return inputs, spread(O, max(1, len(inputs) + (O > I) - (O < I)))


def chosen(tensor: Tensor, *indices: Sequence[int]) -> Tensor:
    """Return the elements of a tensor, detached, with these indices of its first dimensions."""
    tensor = tensor.detach()
    for dim, index in enumerate(indices):
        if len(index) < tensor.shape[dim]:
            tensor = tensor.index_select(dim, torch.tensor(index, device=tensor.device))
    return tensor


def changed(tensor: Tensor, share: float) -> Tensor:
    """Return a float64 copy with values in [-1, 1] added to a fraction `share` of the elements, deterministic per shape."""
    make = _few_changes if tensor.numel() <= 4096 else _changes
    return make(tensor.shape, share, tensor.device) + tensor.detach()


def _changes(shape: torch.Size, share: float, device: torch.device) -> Tensor:
    place = torch.arange(1, shape.numel() + 1, dtype=torch.float64, device=device).view(shape)
    return (place * 0.618034 % 1 * 2 - 1) * ((place * 0.754878) % 1 < share)


_few_changes = lru_cache(maxsize=128)(_changes)


def twin(
    cls: type[nn.Module],
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    attributes: Mapping[str, Any],
    children: Mapping[str, nn.Module] | None = None,
) -> nn.Module:
    """Return a copy of a module, of class `cls`, with these float64 tensors and these attributes.

    The children are float64 copies unless `children` is given. Hooks are not copied. Lists, dicts and sets are copied
    shallowly, and all other attributes are shared with the module.
    """
    copied = cls.__new__(cls)
    held = {name: copy.copy(value) if type(value) in (list, dict, set) else value for name, value in vars(module).items()}
    held.pop("_compiled_call_impl", None)
    vars(copied).update(held | vars(nn.Module()) | dict(attributes))
    for copies, originals in ((copied._parameters, module._parameters), (copied._buffers, module._buffers)):
        copies.update({name: None for name, tensor in originals.items() if tensor is None})
    for name, tensor in tensors.items():
        if name in module._parameters:
            copied._parameters[name] = nn.Parameter(tensor, requires_grad=name != "grid")
        else:
            copied._buffers[name] = tensor
    if children is None:
        copied._modules.update({name: _copied(child) for name, child in module._modules.items()})
    else:
        vars(copied).update(module._modules)  # plain attributes, so that train() on the copy does not affect them
        copied._modules.update(children)
        for name in children:
            del vars(copied)[name]
    return copied


def compare_forwards(twin_of: Callable[[float], nn.Module], theirs: Numbers, ours: Numbers) -> str:
    """Return why two forwards of a module are not the same function, or "" if they agree.

    Args:
        twin_of: returns a copy of the module, made by `twin`, with the given fraction of its elements changed.
        theirs, ours: call a copy with either forward and return tensors to compare. NaN elements of theirs are skipped.
    """
    found_numbers = False
    for training, share in _PASSES:
        try:
            copied = nn.Module.train(twin_of(share), training)
            found, expected = ours(copied), theirs(copied)
        except Exception as error:  # an unknown forward may raise anything
            return f"its forward cannot be compared: {one_line(error)}"
        if len(expected) != len(found):
            return f"its forward returns {len(expected)} tensors, the fused forward {len(found)}"
        difference = _first_difference(expected, found)
        if difference:
            return difference
        found_numbers = found_numbers or any(bool((values.isfinite() & (values != 0)).any()) for values in expected)
    return "" if found_numbers else "its forward returns no finite nonzero values to compare"


def compare_whole(module: nn.Module, theirs: Numbers, ours: Numbers) -> str:
    """Return why two forwards of a module with all its edges and its own parameters differ, or "" if they agree.

    Args:
        module: the module. The comparison uses float64 copies of it.
        theirs, ours: call a copy with either forward and return its outputs.
    """

    def copied() -> nn.Module:
        held = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        tensors = {name: tensor.detach().to(torch.float64, copy=True) for name, tensor in held.items()}
        return nn.Module.train(twin(type(module), module, tensors, {}), False)

    try:
        with torch.no_grad():
            found, expected = (forward(copied()) for forward in (ours, theirs))
    except Exception as error:  # an unknown forward may raise anything
        return f"its forward cannot be compared: {one_line(error)}"
    return _first_difference(expected, found)


class Watched:
    """Calls a class's own forward on copies of a module, and collects the names of the attributes that it reads."""

    def __init__(self, cls: type[nn.Module]) -> None:
        self.names: set[str] = set()
        self._cls = cls
        self._subclass = _noting_reads(cls, self.names)

    def __call__(self, copied: nn.Module, x: Tensor) -> Any:
        copied.__class__ = self._subclass
        try:
            return cast(Any, self._cls).forward(copied, x)
        finally:
            copied.__class__ = self._cls


def _noting_reads(cls: type[nn.Module], names: set[str]) -> type[nn.Module]:
    def read(module: nn.Module, name: str) -> Any:
        names.add(name)
        return super(subclass, module).__getattribute__(name)

    members = {"__getattribute__": read, "__module__": cls.__module__}
    subclass: type[nn.Module] = cast(Any, type(cls))(cls.__name__, (cls,), members)
    return subclass


def ignored_reads(
    module: nn.Module, names: Collection[str], known: Collection[str], twin_of: Callable[[float], nn.Module], theirs: Numbers
) -> str:
    """Return which attribute or submodule a forward reads that the fused forward does not, or "".

    Its value may have no effect now, for example a temperature of 1 or dropout with a probability of 0, and change later.
    Integers without which the forward raises are sizes, and are allowed, as are methods.

    Args:
        module: the module.
        names: the names that `Watched` has collected.
        known: the attributes that the fused forward reads, or that have no effect.
        twin_of, theirs: see `compare_forwards`.
    """
    tensors = {name for held in (module._parameters, module._buffers) for name, tensor in held.items() if tensor is not None}
    for name in sorted(set(names) - tensors - _OF_EVERY_MODULE - set(known)):
        held = any(name in names for names in (vars(module), module._modules, module._parameters, module._buffers))
        of_class = inspect.getattr_static(type(module), name, None)
        if name.startswith("__") or (not held and (callable(of_class) or hasattr(of_class, "__get__"))):
            continue
        value = getattr(module, name, None)
        if type(value) is int and _is_a_size(name, value, twin_of, theirs):
            continue
        what = "submodule" if isinstance(value, nn.Module) else "attribute"
        return f"its forward reads its {what} {name}, whose changes the fused forward would ignore"
    return ""


def _is_a_size(name: str, value: int, twin_of: Callable[[float], nn.Module], theirs: Numbers) -> bool:
    """Return whether a forward raises for another value of the attribute."""
    other = nn.Module.train(twin_of(1.0), False)
    vars(other)[name] = value + 1
    try:
        theirs(other)
    except Exception:
        return True
    return False


def kind_of(layer: nn.Module) -> Kind:
    """Return a key of everything but tensor values. Of the layers with equal keys only one is compared."""
    own = {name: _mark(value) for name, value in vars(layer).items() if name not in _OF_EVERY_MODULE}
    children: dict[str, Any] = {name: _mark(child) for name, child in layer._modules.items()}
    for name, child in layer._modules.items():
        if child is not None and _holds_nothing(child):
            of_child = {k: _mark(value) for k, value in vars(child).items() if k not in _OF_EVERY_MODULE}
            children[name] = (type(child), tuple(sorted(of_child.items())))
    tensors = (*layer._parameters.items(), *layer._buffers.items())
    held = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors if tensor is not None}
    in_order = bool((cast(Any, layer).grid.detach().diff(dim=1) > 0).all())
    return type(layer), tuple(sorted(own.items())), tuple(sorted(children.items())), tuple(sorted(held.items())), in_order


def _mark(value: Any) -> tuple[str, Any]:
    """Return a hashable key that compares plain values and sequences of them by value, and other objects by identity."""
    if type(value) in (list, tuple):
        return type(value).__name__, tuple(map(_mark, value))
    return type(value).__name__, value if isinstance(value, _PLAIN) else id(value)


def _holds_nothing(module: nn.Module) -> bool:
    return not any(vars(module)[name] for name in ("_parameters", "_buffers", "_modules", *_HOOKS))


_is_on_its_own = ContextVar("_is_on_its_own", default=False)


@contextmanager
def on_its_own(device: torch.device) -> Iterator[None]:
    """Disable inference mode, autocast and a default device, and preserve the random states of torch, Python and NumPy."""
    if _is_on_its_own.get():
        yield
        return
    state, numpy = random.getstate(), sys.modules.get("numpy")
    of_numpy = numpy.random.get_state() if numpy else None
    with (
        nullcontext() if torch.get_default_device().type == device.type else device,  # which slows every call down
        torch.inference_mode(False),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        inside = _is_on_its_own.set(True)
        try:
            yield
        finally:
            _is_on_its_own.reset(inside)
            random.setstate(state)
            if numpy:
                numpy.random.set_state(of_numpy)


def layer_values(call: Call, points: Tensor) -> Numbers:
    """Return a function of a layer with `probe_inputs` (n, I): in training mode outputs and gradients, else also for NaN."""

    def called(module: nn.Module, x: Tensor) -> list[Tensor]:
        before = dict(vars(module))
        values = list(call(module, x))
        changed = [name for name, value in vars(module).items() if name not in before or before[name] is not value]
        if changed:
            raise ValueError(f"it sets its attribute {changed[0]}, which the fused forward does not")
        return values

    def numbers(module: nn.Module) -> list[Tensor]:
        x = torch.cat([points, extreme_inputs(points.shape[1], points.device, with_nan=not module.training)])
        with torch.set_grad_enabled(module.training):
            if not module.training:
                return called(module, x)
            values = called(module, x.requires_grad_())
            total = torch.stack([value.sin().sum() for value in values]).sum()
            leaves = [x, *(parameter for parameter in module.parameters() if parameter.requires_grad)]
            return [*values, *torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)]

    return numbers


def whole_values(call: Call, grid: Tensor) -> Numbers:
    """Return a function of a layer with knots (I, T): its outputs for a few rows."""
    rows = torch.cat([probe_inputs(grid)[:3], extreme_inputs(len(grid), grid.device, with_nan=False)])
    return lambda module: list(call(module, rows))


def one_line(error: Exception) -> str:
    """Format an error's type and message in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:200]}"


def _first_difference(theirs: Sequence[Tensor], ours: Sequence[Tensor]) -> str:
    """Return the first `_difference` of two sequences. One comparison suffices for small tensors that agree."""
    small = sum(values.numel() for values in theirs) <= 4096
    if small and all(a.shape == b.shape for a, b in zip(theirs, ours, strict=True)):
        a, b = (torch.cat([values.detach().flatten() for values in side]) for side in (theirs, ours))
        if torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            return ""
    return next(filter(None, (_difference(a.detach(), b.detach()) for a, b in zip(theirs, ours, strict=True))), "")


def _difference(theirs: Tensor, ours: Tensor) -> str:
    if theirs.shape != ours.shape:
        return f"its forward returns shape {tuple(theirs.shape)}, the fused forward {tuple(ours.shape)}"
    if torch.allclose(theirs, ours, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        return ""
    off = (theirs - ours).abs().masked_fill(theirs.isnan() | (theirs == ours), 0.0)
    size = theirs.nan_to_num(0.0, 0.0, 0.0).abs().max()
    if bool((off <= TOLERANCE * (1 + size)).all()):
        return ""
    return f"its forward computes a different function: errors up to {off.max().item():.3g} for values up to {size.item():.3g}"


def _copied(module: nn.Module | None) -> nn.Module | None:
    """Return a float64 copy without hooks."""
    if module is None:
        return None
    if _holds_nothing(module):
        return copy.copy(module)
    copied = copy.deepcopy(module)
    for part in copied.modules():
        for name in _HOOKS:
            getattr(part, name).clear()
    return copied.double()
