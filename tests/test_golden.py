"""A layer computes the numbers of tests/golden/efficient_kan.json, which scipy computed from efficient-kan's description."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

import kan_kernels as kk
from kan_kernels.grid.knots import data_knots

FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads((FOLDER / "efficient_kan.json").read_text())
LAYERS = GOLDEN["layers"]
SAMPLE = GOLDEN["update_grid"]


def exact(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def loaded_layer(golden):
    state = {name: exact(numbers) for name, numbers in golden["state"].items()}
    layer = kk.KANLinear(
        *reversed(state["base_weight"].shape),
        grid_size=golden["grid_size"],
        spline_order=golden["spline_order"],
        enable_standalone_scale_spline="spline_scaler" in state,
        dtype=torch.float64,
    )
    layer.load_state_dict(state, strict=True)
    return layer


def assert_golden(value, numbers, tolerance=1e-10):
    """Compare relative to each element. A gradient that is 0 in theory may be a rounding error of terms of size 1."""
    torch.testing.assert_close(value, exact(numbers), rtol=tolerance, atol=1e-14)


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients(name):
    golden = LAYERS[name]
    layer = loaded_layer(golden)
    x = exact(golden["x"]).requires_grad_()
    y = layer(x)
    (y * exact(golden["g"])).sum().backward()
    gradients = {
        "x": x.grad,
        "base_weight": layer.base_weight.grad,
        "spline_weight": layer.spline_weight.grad,
    }
    if layer.spline_scaler is not None:
        gradients["spline_scaler"] = layer.spline_scaler.grad
    assert_golden(y, golden["y"])
    assert gradients.keys() == golden["gradients"].keys()
    for parameter, gradient in gradients.items():
        assert_golden(gradient, golden["gradients"][parameter])


@pytest.mark.parametrize("name", LAYERS)
def test_regularization_loss(name):
    layer = loaded_layer(LAYERS[name])
    for activation, entropy, loss in LAYERS[name]["regularization_loss"]:
        assert_golden(layer.regularization_loss(activation, entropy), loss)


@pytest.mark.parametrize("grid_eps", SAMPLE["grids"])
def test_knots_of_a_grid_update(grid_eps):
    x, G, K = exact(SAMPLE["x"]), SAMPLE["grid_size"], SAMPLE["spline_order"]
    grid = exact(SAMPLE["grids"][grid_eps])
    knots = data_knots(x, G, K, float(grid_eps), 0.01, "efficient-kan")
    torch.testing.assert_close(knots, grid, rtol=1e-12, atol=1e-12)
    layer = kk.KANLinear(x.shape[1], 2, grid_size=G, spline_order=K, grid_eps=float(grid_eps), dtype=torch.float64)
    layer.update_grid(x)
    torch.testing.assert_close(layer.grid, grid, rtol=1e-12, atol=1e-12)


def flat(tree, path=()):
    """Return every array of the file by its path of keys."""
    if not isinstance(tree, dict):
        return {path: exact(tree)}
    return {key: array for name, value in tree.items() for key, array in flat(value, (*path, name)).items()}


def test_the_script_writes_the_file(tmp_path, monkeypatch):
    """The script reproduces the file up to the rounding of other versions of numpy and scipy."""
    script = FOLDER / "make_efficient_kan.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "written.json")])
    runpy.run_path(str(script), run_name="__main__")
    written = flat(json.loads((tmp_path / "written.json").read_text()))
    assert written.keys() == flat(GOLDEN).keys()
    for path, array in flat(GOLDEN).items():
        torch.testing.assert_close(written[path], array, rtol=1e-12, atol=1e-12, msg=lambda text, path=path: f"{path}: {text}")
