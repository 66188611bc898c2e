"""A wheel has one library for every Python from 3.10 and every glibc that torch supports, and its import is light."""

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
    """The library needs no newer glibc and libstdc++ than manylinux_2_28, and no unstable C++ symbol of torch."""
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
    """Triton, matplotlib, torch.distributed.tensor and the peers are imported when they are first used."""
    code = "import torch, sys; before = set(sys.modules); import kan_kernels; print(*(set(sys.modules) - before))"
    new = {name.partition(".")[0] for name in run(sys.executable, "-c", code, cwd="/").split()}
    assert not new & {"triton", "matplotlib", "kan", "numpy", "scipy", "sympy"}
    assert "torch.distributed.tensor" not in run(sys.executable, "-c", code, cwd="/").split()
    assert "torch._dynamo" not in run(sys.executable, "-c", code, cwd="/").split()
    assert kk.parallel.ColwiseKAN
    with pytest.raises(AttributeError, match="module 'kan_kernels' has no attribute 'paralel'"):
        kk.paralel  # noqa: B018


def test_the_source_distribution_builds_by_itself(tmp_path):
    """It contains all files that the extension, the tests and the other targets of the Makefile need."""
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
        (metadata,) = (name for name in files.getnames() if name.count("/") == 1 and name.endswith("/PKG-INFO"))
        lines = files.extractfile(metadata).read().decode().splitlines()
    assert "License-File: LICENSE" in lines
    assert "# kan_kernels" in lines
    links = re.findall(r"\]\(([^)]*)\)|src(?:set)?=\"([^\"]*)\"", "\n".join(lines))
    assert links, "the README has links"
    assert all("".join(link).startswith("https://") for link in links), "a package index has no relative links"
    assert {"License-Expression: MIT", "License: MIT"} & set(lines)  # setuptools writes the first from version 77 on
    folders = ("csrc", "tests", "bench", "docs", "examples")
    wanted = {file.relative_to(ROOT).as_posix() for folder in folders for file in (ROOT / folder).rglob("*.*")}
    wanted = {name for name in wanted if "__pycache__" not in name}
    words = re.findall(r"[\w./-]+", (ROOT / "Makefile").read_text())
    named = {word for word in words if (ROOT / word).is_file() and not word.startswith(("build/", "/"))}
    assert "examples/digits.py" in named
    assert wanted | named | {"kan_kernels/ops/schemas.txt", "kan_kernels/py.typed", "setup.py", "Makefile", "LICENSE"} <= held


def set_up(*commands, path, **environment):
    """Run setup.py with these commands. Only the programs in `path` can be found."""
    asked = {"PATH": str(path), "KAN_KERNELS_NO_CPP": "0", **environment}
    kept = {name: value for name, value in os.environ.items() if name not in ("CXX", "KAN_KERNELS_SANITIZE")}
    return subprocess.run([sys.executable, "setup.py", *commands], cwd=ROOT, env=kept | asked, capture_output=True, text=True)


def compiler(folder, name, **macros):
    """Create a program in `folder` that prints these predefined macros like a compiler."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text("#!/bin/sh\n" + "".join(f"echo '#define {macro} {value}'\n" for macro, value in macros.items()))
    program.chmod(0o755)


@pytest.mark.parametrize("command", ["build_ext", "bdist_wheel", "editable_wheel", "install"])
def test_a_missing_compiler_is_named_first(tmp_path, command):
    done = set_up(command, path=tmp_path)
    assert done.returncode == 1
    missing, install, go_on = done.stderr.splitlines()
    assert missing == "kan_kernels needs a C++ compiler, g++ >= 11 or clang >= 14: found no c++, g++, clang++."
    assert "apt-get install g++" in install
    assert "KAN_KERNELS_NO_CPP=1 pip install --no-build-isolation ." in go_on


def test_a_compiler_that_is_too_old_is_named(tmp_path):
    compiler(tmp_path, "c++", __GNUC__=10)
    compiler(tmp_path, "clang++", __GNUC__=4, __clang_major__=13)
    assert "found c++ (g++ 10), clang++ (clang 13).\n" in set_up("build_ext", path=tmp_path).stderr
    assert "found clang++ (clang 13).\n" in set_up("build_ext", path=tmp_path, CXX="clang++").stderr
    assert "found no g++-11.\n" in set_up("build_ext", path=tmp_path, CXX="g++-11").stderr


def test_any_compiler_that_is_new_enough_is_taken(tmp_path):
    """After the check, the command prints its help and compiles nothing."""
    compiler(tmp_path, "c++", __GNUC__=10)
    compiler(tmp_path, "clang++", __GNUC__=4, __clang_major__=14)
    assert set_up("build_ext", "--help", path=tmp_path).returncode == 0
    assert set_up("build_ext", "--help", path=tmp_path, CXX="clang++ -Wall").returncode == 0


def test_no_compiler_is_needed_without_the_extension_or_for_metadata(tmp_path):
    assert set_up("build_ext", "--help", path=tmp_path, KAN_KERNELS_NO_CPP="1").returncode == 0
    assert set_up("--version", path=tmp_path).stdout == kk.__version__ + "\n"
