"""Import the layers of other libraries and return their versions.

No package index contains efficient-kan and fast-kan. They are found if they are installed, or if the environment variable
EFFICIENT_KAN or FAST_KAN names a checkout.
"""

import importlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType


class Missing(Exception):
    """Raised if a library cannot be imported. The message explains how to install it."""


def efficient_kan() -> tuple[ModuleType, str]:
    """Return efficient-kan (github.com/Blealtan/efficient-kan) and its commit."""
    return _from_checkout("efficient_kan", "EFFICIENT_KAN", "src")


def fast_kan() -> tuple[ModuleType, str]:
    """Return fast-kan (github.com/ZiyaoLi/fast-kan), which uses Gaussian radial basis functions, and its commit."""
    return _from_checkout("fastkan", "FAST_KAN", ".")


def inkan() -> tuple[ModuleType, str]:
    """Return inkan (on PyPI), which uses uniform cubic splines, and its version."""
    try:
        return importlib.import_module("inkan"), importlib.metadata.version("inkan")
    except ImportError as error:
        raise Missing(f"inkan is not importable ({error}): pip install inkan==0.5.2") from error


def _from_checkout(name: str, variable: str, folder: str) -> tuple[ModuleType, str]:
    """Import a module. Return it and its commit, or "installed" if no environment variable names a checkout."""
    checkout = os.environ.get(variable, "")
    path = str(Path(checkout) / folder)
    if checkout and path not in sys.path:
        sys.path.insert(0, path)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise Missing(f"{name} is not importable ({error}): set {variable} to a checkout of it") from error
    if not checkout:
        return module, "installed"
    git = ["git", "-C", checkout, "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        commit = ""
    return module, commit or "unknown commit"
