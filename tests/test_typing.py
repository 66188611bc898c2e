"""Type checkers accept the README's Python and the public API, and report wrong uses.

The checkers run outside of the repository, as in a user's project, and find the package where this Python finds it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
README = TESTS.parent / "README.md"
# These options are "--strict", except for functions that torch leaves untyped, such as Tensor.backward. mypy does not follow
# imports of the peers' untyped modules.
MYPY = """
[mypy]
strict = true
untyped_calls_exclude = torch
[mypy-kan_kernels.*]
follow_imports = silent
[mypy-efficient_kan]
follow_imports = skip
[mypy-kan.*,scipy.*]
ignore_missing_imports = true
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Create a user's project that contains a copy of efficient-kan."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("usage", "misuse"):
        shutil.copy(TESTS / "typing" / f"{name}.py", folder)
    shutil.copy(TESTS / "peer_layers.py", folder / "efficient_kan.py")
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert snippets
    (folder / "readme.py").write_text("\n".join(snippets))
    return folder


def searched():
    """Return the folders of PYTHONPATH, which type checkers do not read."""
    return [str(Path(entry).resolve()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def mypy(project, cache):
    """Return the message of every error by (file, line)."""
    (project / "mypy.ini").write_text(MYPY)
    files = ("readme.py", "usage.py", "misuse.py")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(cache.mkdir("mypy")), "--no-error-summary", *files]
    environment = os.environ | {"MYPYPATH": os.pathsep.join(searched())}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^(.+?):(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    return {(file, int(line)): message for file, line, message in found}


def pyright(project, cache):
    """Return the message of every error by (file, line)."""
    (project / "pyrightconfig.json").write_text(json.dumps({"extraPaths": searched(), "exclude": ["efficient_kan.py"]}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = [report for report in json.loads(done.stdout)["generalDiagnostics"] if report["severity"] == "error"]
    return {(Path(report["file"]).name, report["range"]["start"]["line"] + 1): report["message"] for report in found}


@pytest.mark.parametrize("checker", [mypy, pyright], ids=["mypy", "pyright"])
def test_type_checkers(checker, project, request):
    errors = checker(project, request.config.cache)
    lines = enumerate((project / "misuse.py").read_text().splitlines(), 1)
    wrong = {("misuse.py", line) for line, text in lines if text.endswith("# error")}
    assert wrong
    assert {place: message for place, message in errors.items() if place not in wrong} == {}
    assert wrong <= errors.keys()
