"""The licence, the description, and the C++ extension with a check of its compiler. The rest is in pyproject.toml.

KAN_KERNELS_NO_CPP=1 leaves the extension out: the library then works on its reference, and `kan_kernels.info()` says so.
KAN_KERNELS_SANITIZE=1 builds it under AddressSanitizer (`make test-asan`).
"""

import os
import re
import shlex
import subprocess
import sys
from glob import glob
from pathlib import Path

import setuptools

ABI = "cp310"  # CPython's limited API of 3.10
TORCH_TARGET = "0x020a000000000000"  # libtorch's stable ABI of torch 2.10

REPOSITORY = ""  # the address of the source tree, such as https://github.com/OWNER/kan_kernels/blob/main, once it is public
COMPILING_COMMANDS = ("bdist", "build", "develop", "editable", "install")  # beginnings of their names
OLDEST = {"g++": 11, "clang": 14}
OLDEST_SETUPTOOLS = (65, 5)
HOW_TO_GO_ON = """\
Install one (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install), or set CXX.
To go on without it, in plain PyTorch and slower: KAN_KERNELS_NO_CPP=1 pip install --no-build-isolation ."""


def setuptools_version() -> tuple[int, ...]:
    """Its first two numbers; older ones than the build needs are refused, which pip does not do without build isolation."""
    version = tuple(int(number) for number in setuptools.__version__.split(".")[:2])
    if version < OLDEST_SETUPTOOLS:
        raise SystemExit(
            f"kan_kernels needs setuptools {'.'.join(map(str, OLDEST_SETUPTOOLS))} or newer, found {setuptools.__version__}:"
            " pip install -U setuptools"
        )
    return version


def license_field() -> dict:
    """The SPDX expression, under the keyword that this setuptools has for it."""
    return {"license_expression" if setuptools_version() >= (77,) else "license": "MIT"}


def description() -> dict:
    """Return the README as a package index shows it, where relative links lead nowhere.

    With a REPOSITORY the links are absolute, without one they are plain text and the pictures are left out.
    """
    text = Path("README.md").read_text(encoding="utf-8")
    if REPOSITORY:
        text = re.sub(r"\]\((?!https?://|#)", f"]({REPOSITORY}/", text)
        text = re.sub(r'(src|srcset)="(?!https?://)', rf'\1="{REPOSITORY}/', text)
    else:
        text = re.sub(r"\[([^\]]*)\]\((?!https?://|#)[^)]*\)", r"\1", text)
        text = re.sub(r"<picture>.*?</picture>\n*", "", text, flags=re.DOTALL)
    return {"long_description": text, "long_description_content_type": "text/markdown"}


def compiler_version(command: str) -> tuple[str, int] | None:
    """The family and the major version of a C++ compiler by its predefined macros; None where there is no such compiler."""
    try:
        asked = [*shlex.split(command), "-dM", "-E", "-x", "c++", "-"]
        macros = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    for family, macro in (("clang", "__clang_major__"), ("g++", "__GNUC__")):  # clang defines both
        if found := re.search(rf"#define {macro} (\d+)", macros):
            return family, int(found[1])
    return None


def choose_compiler() -> str:
    """CXX if it is set, as BuildExtension does, else the first of the usual names that is new enough."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    found = {command: version for command in candidates if (version := compiler_version(command)) is not None}
    for command, (family, major) in found.items():
        if major >= OLDEST[family]:
            return command
    wanted = "kan_kernels needs a C++ compiler, g++ >= 11 or clang >= 14"
    if found:
        raise SystemExit(f"{wanted}: found {', '.join(f'{c} ({f} {v})' for c, (f, v) in found.items())}.\n{HOW_TO_GO_ON}")
    raise SystemExit(f"{wanted}: found no {', '.join(candidates)}.\n{HOW_TO_GO_ON}")


def extension() -> dict:
    compiles = any(argument.startswith(COMPILING_COMMANDS) for argument in sys.argv[1:])
    if os.environ.get("KAN_KERNELS_NO_CPP", "0") == "1" or not compiles:
        return {}
    os.environ["CXX"] = choose_compiler()  # for the link too, which would take what Python was built with
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise SystemExit("kan_kernels is compiled for the PyTorch that is installed, but torch is not.") from None

    class BuildKeepingObjects(BuildExtension):
        """Compiles only what changed, for editable installs too, whose directory of objects is temporary otherwise."""

        def finalize_options(self) -> None:
            self.build_temp = self.build_temp or "build/temp"
            super().finalize_options()

    compile_args = ["-std=c++17", "-O3", "-g0", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
    compile_args += ["-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    link_args = []
    if os.environ.get("KAN_KERNELS_SANITIZE", "0") == "1":
        compile_args += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
        link_args += ["-fsanitize=address,undefined"]
    generated = Path("build/generated")
    generated.mkdir(parents=True, exist_ok=True)
    schemas = Path("kan_kernels/ops/schemas.txt").read_text().splitlines()
    (generated / "schemas.inc").write_text("".join(f'KAN_SCHEMA("{schema}")\n' for schema in schemas))
    module = CppExtension(
        "kan_kernels._C",
        sorted(glob("csrc/*.cpp")),
        depends=[*glob("csrc/*.h"), *glob("csrc/kernels/*.inl"), "kan_kernels/ops/schemas.txt"],
        include_dirs=[str(generated.resolve())],
        extra_compile_args={"cxx": compile_args},
        extra_link_args=link_args,
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": BuildKeepingObjects},
        "options": {"bdist_wheel": {"py_limited_api": ABI}},
    }


setuptools.setup(**license_field(), **description(), **extension())
