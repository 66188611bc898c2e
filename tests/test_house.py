"""The house stands: files import only from lower floors, every public name is documented."""

import ast
import inspect
from pathlib import Path

import kan_kernels as kk

PACKAGE = Path(kk.__file__).parent

# A file imports only from floors below its own.
FLOORS = {
    "reference": 0,
    "fallbacks": 0,
    "autocast": 0,
    "refusal": 0,
    "sharding": 0,
    "flops": 0,
    "layout": 0,
    "legacy": 0,
    "checks": 1,
    "grid": 1,
    "reference_norms": 1,
    "reference_std": 1,
    "gpu": 2,
    "regularization": 2,
    "ops": 3,
    "batching": 3,
    "projection": 4,
    "autograd": 4,
    "edge_autograd": 5,
    "functional": 5,
    "initial": 5,
    "edge": 6,
    "edge_norms": 6,
    "diagnostics": 6,
    "layers": 7,
    "interop": 8,
    "parallel": 8,
    "pruning": 8,
    "network": 9,
    "plot_layout": 0,
    "plot_drawing": 1,
    "plotting": 10,
    "__init__": 11,
    "__main__": 12,
}
# The same for the files of the subpackages, which themselves look only down.
SUBPACKAGES = {
    "gpu": {
        "__init__": 0,
        "basis": 0,
        "product": 0,
        "tiles": 0,
        "choose": 0,
        "weights": 1,
        "forward": 1,
        "backward_input": 1,
        "backward_weight": 1,
        "tiny": 1,
        "wide": 1,
        "edge_l1": 1,
        "prepare": 2,
        "launch_wide": 3,
        "launch": 4,
        "launch_edges": 4,
    },
    "interop": {
        "fused": 0,
        "probe": 0,
        "edge_record": 0,
        "efficient_kan": 1,
        "pykan_layers": 1,
        "pykan_small": 2,
        "pykan_networks": 3,
        "pykan_weights": 4,
        "accelerate": 4,
        "__init__": 5,
    },
}


def imported_modules(file: Path, level: int = 1) -> set[str]:
    """What a file imports from its package (level 1) or from the one above (2), outside of functions' late imports."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level == level:
            names |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("kan_kernels"):
            raise AssertionError(f"{file.name}: import relatively, not from {node.module}")
    return names


def test_every_file_has_a_floor():
    packages = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}
    assert {file.stem for file in PACKAGE.glob("*.py")} | packages == set(FLOORS)
    for folder, floors in SUBPACKAGES.items():
        assert {file.stem for file in (PACKAGE / folder).glob("*.py")} == set(floors)


def test_floors_only_look_down():
    for file in PACKAGE.glob("*.py"):
        for name in imported_modules(file):
            assert FLOORS[name] < FLOORS[file.stem], f"{file.name} (floor {FLOORS[file.stem]}) imports {name}"
    for folder, floors in SUBPACKAGES.items():
        for file in (PACKAGE / folder).glob("*.py"):
            for name in imported_modules(file):
                assert floors[name] < floors[file.stem], f"{folder}/{file.name} (floor {floors[file.stem]}) imports {name}"
            for name in imported_modules(file, level=2):
                assert FLOORS[name] < FLOORS[folder], f"{folder}/{file.name} imports {name}"


def test_kernels_never_see_torch():
    """csrc: the loops are torch-free, and no instruction set leaks into a shared header."""
    csrc = PACKAGE.parent / "csrc"
    files = sorted(csrc.glob("*"))
    assert files
    for file in files:
        if file.suffix == ".inl" or file.name.startswith(("kernels_", "problem", "scratch")):
            assert "torch" not in file.read_text().replace("torch's", ""), file.name


def test_public_names_are_documented():
    """Every public name and method has a docstring; `kan_linear` and `KANLinear` name what they raise and an equivalent."""
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
