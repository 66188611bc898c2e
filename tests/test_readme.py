"""The README's Python runs as it stands."""

import re
import sys
from pathlib import Path

import peer_layers
import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.filterwarnings("ignore")  # pykan's
def test_readme_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where pykan writes
    monkeypatch.setitem(sys.modules, "efficient_kan", peer_layers)  # it is in no registry
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) >= 2
    namespace: dict = {}
    for snippet in snippets:
        exec(snippet, namespace)
