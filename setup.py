"""The C++ extension; everything else about the package is in pyproject.toml.

KAN_KERNELS_NO_CPP=1 leaves it out: the library then works on its reference, and `kan_kernels.info()` says so.
KAN_KERNELS_SANITIZE=1 builds it under AddressSanitizer (`make test-asan`).
"""

import os
from glob import glob
from pathlib import Path

from setuptools import setup

ABI = "cp310"  # CPython's limited API of 3.10
TORCH_TARGET = "0x020a000000000000"  # libtorch's stable ABI of torch 2.10


def extension() -> dict:
    if os.environ.get("KAN_KERNELS_NO_CPP", "0") == "1":
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    compile_args = ["-std=c++17", "-O3", "-g0", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
    compile_args += ["-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    link_args = []
    if os.environ.get("KAN_KERNELS_SANITIZE", "0") == "1":
        compile_args += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
        link_args += ["-fsanitize=address,undefined"]
    generated = Path("build/generated")
    generated.mkdir(parents=True, exist_ok=True)
    schemas = Path("kan_kernels/schemas.txt").read_text().splitlines()
    (generated / "schemas.inc").write_text("".join(f'KAN_SCHEMA("{schema}")\n' for schema in schemas))
    module = CppExtension(
        "kan_kernels._C",
        sorted(glob("csrc/*.cpp")),
        depends=[*glob("csrc/*.h"), *glob("csrc/*.inl"), "kan_kernels/schemas.txt"],
        include_dirs=[str(generated.resolve())],
        extra_compile_args={"cxx": compile_args},
        extra_link_args=link_args,
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": ABI}},
    }


setup(**extension())
