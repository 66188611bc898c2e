"""Comparison of a module's own forward with the fused forward, before its class is replaced.

The comparison uses copies of the module with changed parameters, so that edges which are zero or masked are compared too. They
have all its edges, because a forward may depend on the sizes. The copies of a very large layer have a few of its inputs and
outputs, and a last comparison, of outputs for a few rows, uses all its edges and its own parameters.
"""

import copy
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
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
_WITHOUT_STATE = (nn.SiLU, nn.Identity)

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


def extreme_inputs(features: int, device: torch.device, with_nan: bool = True) -> Tensor:
    """Return inputs (6, features), float64, or 5 rows without NaN, that reveal a clamp or nan_to_num before the layer."""
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
        for a, b in zip(expected, found, strict=True):
            difference = _difference(a.detach(), b.detach())
            if difference:
                return difference
            found_numbers = found_numbers or bool((a.isfinite() & (a != 0)).any())
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
    return next(filter(None, map(_difference, expected, found)), "")


def changeable_parts(module: nn.Module, twin_of: Callable[[float], nn.Module], theirs: Numbers, known: Collection[str]) -> str:
    """Return on which attribute or submodule a forward depends that the fused forward does not read, or "".

    The value of such a part may have no effect now, for example a temperature of 1 or dropout with a probability of 0, and
    change later. Attributes without which the forward raises are sizes, and are allowed.

    Args:
        module: the module.
        twin_of: returns a copy of the module, made by `twin`.
        theirs: calls a copy with its own forward.
        known: the attributes and submodules that the fused forward reads, or that no forward reads.
    """
    values = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
    for held in (module._parameters, module._buffers, module._modules):
        values.update({name: None for name, value in held.items() if value is None})
    unknown = {n: value for n, value in values.items() if n not in known and (value is None or isinstance(value, _PLAIN))}
    children = {name for name, child in module.named_children() if name not in known and type(child) not in _WITHOUT_STATE}
    if not unknown and not children:
        return ""
    copied = nn.Module.train(twin_of(1.0), False)
    called: set[str] = set()
    handles = [
        part.register_forward_pre_hook(partial(_note_call, called, name))
        for name in children
        for part in copied.get_submodule(name).modules()
    ]
    try:
        expected = theirs(copied)
    finally:
        for handle in handles:  # copies of modules without state share the dict of hooks
            handle.remove()
    if called:
        return f"its forward calls its submodule {min(called)}, whose changes the fused forward would ignore"
    for name, value in unknown.items():
        other = nn.Module.train(twin_of(1.0), False)
        vars(other)[name] = _another(value)
        try:
            same = all(_difference(a, b) == "" for a, b in zip(expected, theirs(other), strict=True))
        except Exception:  # a size that does not fit
            same = value is not None
        if not same:
            return f"its forward depends on its attribute {name}, whose changes the fused forward would ignore"
    return ""


def _another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "-"
    return 0.5 if value is None else value + 1


def _note_call(called: set[str], name: str, *_: Any) -> None:
    called.add(name)


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


@contextmanager
def on_its_own(device: torch.device) -> Iterator[None]:
    """Disable inference mode and autocast, and preserve the random states of torch and Python."""
    state = random.getstate()
    with (
        torch.inference_mode(False),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        try:
            yield
        finally:
            random.setstate(state)


def layer_values(call: Call, grid: Tensor) -> Numbers:
    """Return a function of a layer with knots (I, T): in training mode its outputs and gradients, else outputs for NaN too."""
    points = probe_inputs(grid)

    def called(module: nn.Module, x: Tensor) -> list[Tensor]:
        before = dict(vars(module))
        values = list(call(module, x))
        changed = [name for name, value in vars(module).items() if name not in before or before[name] is not value]
        if changed:
            raise ValueError(f"it sets its attribute {changed[0]}, which the fused forward does not")
        return values

    def numbers(module: nn.Module) -> list[Tensor]:
        x = torch.cat([points, extreme_inputs(len(grid), grid.device, with_nan=not module.training)])
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
