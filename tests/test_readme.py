"""The Python of the README and of the documentation runs as it stands."""

import re
import sys
from pathlib import Path

import peer_layers
import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.filterwarnings("ignore")  # pykan's
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where pykan writes
    monkeypatch.setitem(sys.modules, "efficient_kan", peer_layers)  # it is in no registry
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert snippets or page.stem in ("install", "api", "architecture", "backend", "exact", "gpu", "scale-out")
    namespace: dict = {}
    try:
        for snippet in snippets:
            exec(snippet, namespace)
    finally:
        torch.set_default_dtype(torch.float32)  # pykan's pages change it
