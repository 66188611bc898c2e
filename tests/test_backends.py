"""Tests of the choice of backend and instruction set, of `info()`, and of the package without its extension."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import Case, make
from torch import nn

import kan_kernels as kk
from kan_kernels import backends, reference

PACKAGE = Path(kk.__file__).parent


def run_python(code: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    variables = os.environ | environment
    if path is not None:
        variables["PYTHONPATH"] = str(path)
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, cwd="/")


def test_use_backend_switches_and_restores():
    t = make(Case(7, 3, 5), torch.float32)
    assert backends.backend() == os.environ.get("KAN_KERNELS_BACKEND", "auto")
    with kk.use_backend("reference"):
        assert backends.backend() == "reference"
        assert torch.equal(kk.kan_linear(t.x, t.spline_weight, t.grid), reference.kan_linear(t.x, t.spline_weight, t.grid))
        with kk.use_backend("cpp"):
            assert backends.backend() == "cpp"
        assert backends.backend() == "reference"
    with pytest.raises(ZeroDivisionError), kk.use_backend("reference"):
        raise ZeroDivisionError
    assert backends.backend() != "reference"


def test_environment_chooses():
    shown = "import kan_kernels as kk; print(kk.info())"
    assert "backend         reference" in run_python(shown, KAN_KERNELS_BACKEND="reference").stdout
    assert "C++ kernels     baseline" in run_python(shown, KAN_KERNELS_ISA="baseline").stdout
    refused = run_python(shown, KAN_KERNELS_BACKEND="fastest")
    assert "ValueError: KAN_KERNELS_BACKEND: expected one of" in refused.stderr
    refused = run_python(shown, KAN_KERNELS_ISA="avx1024")
    assert "ValueError: KAN_KERNELS_ISA: expected one of" in refused.stderr


def test_info_as_a_module(monkeypatch):
    monkeypatch.setattr(backends, "_fallbacks", {})  # the new process has no fallbacks of other tests
    shown = subprocess.run([sys.executable, "-W", "error", "-m", "kan_kernels"], capture_output=True, text=True, cwd="/")
    assert shown.stdout.strip() == str(kk.info()).strip(), shown.stderr


def test_info():
    info = kk.info()
    assert info.versions["torch"] == torch.__version__
    assert info.serves["cpu"] == "cpp"
    assert "triton" in info.unavailable
    assert info.instruction_set in info.available_instruction_sets
    assert {*info.available_instruction_sets, *info.unavailable_instruction_sets} == set(backends.INSTRUCTION_SETS)


def test_info_says_why_there_is_no_faster_instruction_set(monkeypatch):
    class OldProcessor:
        """The extension on a processor that supports only the first instruction set."""

        def kan_kernels_select_instruction_set(self, level):
            return 0

    monkeypatch.setattr(backends, "extension", OldProcessor())
    monkeypatch.setattr(backends.platform, "machine", lambda: "x86_64")
    info = kk.info()
    assert info.available_instruction_sets == ("baseline",)
    assert "  not avx2      not supported by this processor; needs AVX2, FMA, F16C, BMI1 and BMI2\n" in str(info)
    monkeypatch.setattr(backends.platform, "machine", lambda: "aarch64")
    assert "  not avx512    compiled for x86-64 only, and this library is for aarch64\n" in str(kk.info())
    with pytest.raises(ValueError, match="'avx2' is not available: compiled for x86-64 only, and this library is for aarch64"):
        backends.select_instruction_set("avx2")


def test_a_plain_activation_is_visible(caplog):
    """A fallback is logged once with its reason, and `info()` lists it."""

    class Odd(nn.Tanh):
        pass

    layer = kk.KANLinear(3, 2, base_activation=Odd)
    for _ in range(3):
        layer(torch.zeros(1, 3))
    assert [record.message for record in caplog.records if "Odd" in record.message] == [
        "kan_kernels: base activation Odd: not fused, runs in plain torch"
    ]
    assert kk.info().fallbacks["base activation Odd"] == "not fused, runs in plain torch"


def test_without_the_extension(tmp_path):
    """KAN_KERNELS_NO_CPP=1 installs a working package, which reports that it runs on the reference."""
    shutil.copytree(PACKAGE, tmp_path / "kan_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = f"""
import importlib.metadata
import torch
importlib.metadata.distributions = lambda **of: []
import kan_kernels as kk
assert kk.__file__.startswith({str(tmp_path)!r}), kk.__file__
net = kk.KAN([3, 5, 2], dtype=torch.float64)
x = torch.rand(7, 3, dtype=torch.float64, requires_grad=True)
assert torch.autograd.gradgradcheck(net, (x,))
print(kk.info())
assert "KAN_KERNELS_NO_CPP" in kk.info().unavailable_instruction_sets["baseline"]
"""
    done = run_python(code, tmp_path)
    assert "not cpp" in done.stdout, done.stderr
    assert "KAN_KERNELS_NO_CPP" in done.stdout
    installed = tmp_path / "site-packages"
    (installed / "kan_kernels").mkdir(parents=True)
    (installed / "kan_kernels" / "_C.abi3.so").touch()
    (installed / "kan_kernels-0.1.0.dist-info").mkdir()
    (installed / "kan_kernels-0.1.0.dist-info" / "METADATA").write_text("Name: kan_kernels\nVersion: 0.1.0\n")
    path = f"import sys; sys.path.insert(1, {str(installed)!r})"
    code = f"{path}\nimport kan_kernels as kk; print(kk.info()); kk.use_backend('cpp')"
    shadowing = run_python(code, tmp_path)
    unused = f"not {installed / 'kan_kernels'}; start Python in another directory"
    reason = f"Python imported the source tree {tmp_path / 'kan_kernels'}, {unused}"
    assert f"the CPU runs on the reference: {reason}" in shadowing.stderr
    assert f"name: 'cpp' is not available: {reason}" in shadowing.stderr
    assert reason in shadowing.stdout


def test_without_triton():
    """Without Triton, GPU tensors fall back to the reference, and `info()` reports this.

    Triton is imported only with the first GPU tensor.
    """
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
import torch, kan_kernels as kk
from kan_kernels import reference
from kan_kernels.ops import library
assert "triton" not in sys.modules
layer, x = kk.KANLinear(3, 2), torch.rand(4, 3)
arguments = (x, None, layer.spline_weight.detach(), None, layer.grid, None, "silu", 0)
assert torch.equal(library._launch("spline_forward", *arguments), reference.spline_forward(*arguments))
print(kk.info())
"""
    done = run_python(code)
    assert "not triton    triton is not installed" in done.stdout, done.stderr
    assert "cuda          reference" in done.stdout
    assert "the GPU runs on the reference: triton is not installed" in done.stdout


def test_a_broken_extension_is_a_logged_fallback(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "kan_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "kan_kernels" / "_C.abi3.so").write_text("not a library")
    done = run_python("import kan_kernels as kk; print(kk.info())", tmp_path)
    assert "the CPU runs on the reference: the C++ extension does not load" in done.stderr
    assert "fell back" in done.stdout


def test_other_devices_run_on_the_reference():
    """The operators' fake kernels run on the meta device. They compute no values, only shapes and dtypes."""
    net = kk.KAN([3, 5, 2], device="meta", dtype=torch.bfloat16)
    y = net(torch.empty(2, 4, 3, device="meta", dtype=torch.bfloat16))
    assert (y.shape, y.dtype, y.device.type) == ((2, 4, 2), torch.bfloat16, "meta")
