"""Rules that no linter checks: the kernels do not use torch, and public names have docstrings.

pyproject.toml contains the import contracts.
"""

import inspect
from pathlib import Path

import kan_kernels as kk

PACKAGE = Path(kk.__file__).parent


def test_kernels_never_see_torch():
    """The loops in csrc do not use torch, so that no instruction set affects a shared header."""
    csrc = PACKAGE.parent / "csrc"
    files = sorted(path for path in csrc.rglob("*") if path.is_file())
    assert files
    for file in files:
        if file.suffix == ".inl" or file.name.startswith(("kernels_", "problem", "scratch")):
            assert "torch" not in file.read_text().replace("torch's", ""), file.name


def test_public_names_are_documented():
    """Every public name and method has a docstring.

    The docstrings of `kan_linear` and `KANLinear` state the exceptions and an equivalent.
    """
    for name in kk.__all__:
        public = getattr(kk, name)
        assert inspect.getdoc(public), name
        if inspect.isclass(public):
            for method, value in vars(public).items():
                if callable(value) and not method.startswith("_"):
                    assert inspect.getdoc(getattr(public, method)), f"{name}.{method}"
    for public in (kk.kan_linear, kk.KANLinear):
        text = inspect.getdoc(public)
        assert "Raises:" in text
        assert "Equivalent to" in text
