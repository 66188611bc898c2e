"""Checkpoints and pickles of version 0.1.0 load.

Its parameters were `coef` (I, M, O), `base_coef` and `scaler` (I, O), and it had a buffer `mask`. That version saved
golden/layer_0_1_0.pt, which contains modules, the named parameters of one module, inputs and outputs.
"""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import kan_kernels as kk

SAVED = Path(__file__).parent / "golden" / "layer_0_1_0.pt"
NEW = {"base_coef": "base_weight", "coef": "spline_weight", "scaler": "spline_scaler", "mask": "edge_mask"}


@pytest.fixture(scope="module")
def saved():
    return torch.load(SAVED, weights_only=False)


def in_old_names(state):
    """Return a state_dict with the names and layouts of 0.1.0, which have out_features last."""
    old = {new: name for name, new in NEW.items()}
    return {
        f"{path}{dot}{old.get(name, name)}": value if name == "grid" else value.movedim(0, -1).contiguous()
        for path, dot, name, value in ((*key.rpartition("."), value) for key, value in state.items())
    }


@pytest.mark.parametrize("name", ["layer", "pruned", "bare"])
def test_a_pickled_module_loads(saved, name):
    module = saved["modules"][name]
    torch.testing.assert_close(module(saved["x"]), saved["outputs"][name], rtol=1e-5, atol=1e-6)
    for layer in [module] if isinstance(module, kk.KANLinear) else module.layers:
        names = [n for n, _ in layer.named_parameters()]
        assert names == (["spline_weight"] if name == "bare" else ["base_weight", "spline_weight", "spline_scaler"])
        assert [n for n, _ in layer.named_buffers()] == (["grid", "edge_mask"] if name == "pruned" else ["grid"])
        assert all(isinstance(p, nn.Parameter) and p.is_leaf and p.is_contiguous() for p in layer.parameters())
        assert not set(NEW) & set(vars(layer) | layer._parameters | layer._buffers)


@pytest.mark.parametrize("name", ["layer", "pruned", "bare"])
def test_a_pickled_module_lives_on(saved, name):
    module = copy.deepcopy(saved["modules"][name])
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(saved["x"]), module(saved["x"]))
    module(saved["x"]).sum().backward()
    assert all(p.grad.is_contiguous() for p in module.parameters())
    like = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in like.parameters():
            parameter.zero_()
    like.load_state_dict(module.state_dict())
    assert torch.equal(like(saved["x"]), module(saved["x"]))
    assert "in_features=3" in repr(module)


def test_named_parameters_load(saved):
    """Only the grid is missing, and the values are those of the pickled layer."""
    assert list(saved["named_parameters"]) == ["base_coef", "coef", "scaler"]
    layer = kk.KANLinear(3, 2)
    result = layer.load_state_dict(saved["named_parameters"], strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["grid"], [])
    torch.testing.assert_close(layer(saved["x"]), saved["outputs"]["layer"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", ["layer", "pruned", "bare"])
def test_a_state_dict_under_the_old_names_loads(saved, name, assign):
    module = saved["modules"][name]
    old = in_old_names(module.state_dict())
    assert any(key.endswith("coef") for key in old)
    before = {key: value.clone() for key, value in old.items()}
    fresh = {
        "layer": lambda: kk.KANLinear(3, 2),
        "pruned": lambda: kk.KAN([3, 4, 2]),
        "bare": lambda: kk.KANLinear(3, 2, base_activation=None, enable_standalone_scale_spline=False),
    }[name]()
    fresh.load_state_dict(old, strict=True, assign=assign)
    assert torch.equal(fresh(saved["x"]), module(saved["x"]))
    assert list(fresh.state_dict()) == list(module.state_dict())
    for key, value in module.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key
    assert all(p.is_contiguous() for p in fresh.parameters())
    assert list(old) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in old.items())


def test_bad_old_state_dicts_are_refused():
    layer = kk.KANLinear(3, 2)
    old = in_old_names(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*spline_weight"):
        layer.load_state_dict({key: value for key, value in old.items() if key != "coef"})
    with pytest.raises(RuntimeError, match=r"size mismatch for spline_weight"):
        layer.load_state_dict(old | {"coef": torch.zeros(2, 8, 3)})
    with pytest.raises(RuntimeError, match=r"size mismatch for base_weight"):
        layer.load_state_dict(old | {"base_coef": torch.zeros(2, 3)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*scaler"):
        kk.KANLinear(3, 2, enable_standalone_scale_spline=False).load_state_dict(old)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*\"coef\""):
        layer.load_state_dict(layer.state_dict() | {"coef": torch.zeros(3, 8, 2)})
