"""What a wheel promises: one library for every Python from 3.10 and every glibc that torch runs on, and a light import."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import kan_kernels as kk

ROOT = Path(__file__).parent.parent
LIBRARY = next(iter(sorted(Path(kk.__file__).parent.glob("_C*.so"))), None)
needs_library = pytest.mark.skipif(LIBRARY is None, reason="built without C++")


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_library
def test_the_library_keeps_to_the_limited_api():
    audit = [sys.executable, "-m", "abi3audit", "--strict", "--report", "--assume-minimum-abi3", "3.10", str(LIBRARY)]
    report = json.loads(run(*audit))
    (spec,) = report["specs"].values()
    assert spec["object"]["result"]["is_abi3"]
    assert spec["object"]["result"]["non_abi3_symbols"] == []


@needs_library
def test_the_library_loads_where_torch_does():
    """manylinux_2_28: nothing newer of glibc, libstdc++ or torch's unstable C++."""
    elffile = pytest.importorskip("elftools.elf.elffile")
    with LIBRARY.open("rb") as file:
        elf = elffile.ELFFile(file)
        versions = [version for _, group in elf.get_section_by_name(".gnu.version_r").iter_versions() for version in group]
        symbols = list(elf.get_section_by_name(".dynsym").iter_symbols())
        needs = [version.name for version in versions]
        names = [symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF"]
    newest = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11)}
    for need in needs:
        family, _, version = need.partition("_")
        if family in newest:
            assert tuple(map(int, version.split("."))) <= newest[family], need
    assert not [name for name in names if re.search(r"c10|2at6Tensor|_ZN2at", name) and "headeronly" not in name]


def test_importing_it_imports_nothing_heavy():
    """Triton, matplotlib, torch.distributed's tensors and the peers come with their first use."""
    code = "import torch, sys; before = set(sys.modules); import kan_kernels; print(*(set(sys.modules) - before))"
    new = {name.partition(".")[0] for name in run(sys.executable, "-c", code, cwd="/").split()}
    assert not new & {"triton", "matplotlib", "kan", "numpy", "scipy", "sympy"}
    assert "torch.distributed.tensor" not in run(sys.executable, "-c", code, cwd="/").split()
    assert "torch._dynamo" not in run(sys.executable, "-c", code, cwd="/").split()
    assert kk.parallel.ColwiseKAN
    with pytest.raises(AttributeError, match="module 'kan_kernels' has no attribute 'paralel'"):
        kk.paralel  # noqa: B018


def test_the_source_distribution_builds_by_itself(tmp_path):
    """It holds everything that the extension and the tests are made of."""
    run(
        sys.executable,
        "-m",
        "build",
        "--sdist",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
        env=os.environ | {"KAN_KERNELS_NO_CPP": "1"},
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        held = {name.partition("/")[2] for name in files.getnames()}
    wanted = {file.relative_to(ROOT).as_posix() for folder in ("csrc", "tests") for file in (ROOT / folder).rglob("*.*")}
    wanted = {name for name in wanted if "__pycache__" not in name}
    assert wanted | {"kan_kernels/schemas.txt", "kan_kernels/py.typed", "setup.py", "pyproject.toml", "LICENSE"} <= held
