"""The Python code in the README and in the documentation runs unchanged."""

import re
import sys
from pathlib import Path

import peer_layers
import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.filterwarnings("ignore")  # pykan warns
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pykan writes to the current directory
    monkeypatch.setitem(sys.modules, "efficient_kan", peer_layers)  # no package registry contains it
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert snippets or page.stem in ("install", "api", "architecture", "backend", "exact", "gpu", "scale-out")
    namespace: dict = {}
    try:
        for snippet in snippets:
            exec(snippet, namespace)
    finally:
        torch.set_default_dtype(torch.float32)  # the examples with pykan change it
