"""The dry run of the GPU benchmarks runs all of their lines without a GPU, so that errors are found before one is used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench" / "gpu.py"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCH), *arguments], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_the_dry_run_measures_every_provider(tmp_path):
    pytest.importorskip("triton", reason="triton is for Linux only")
    out = tmp_path / "gpu.jsonl"
    done = run("--dry-run", "--out", str(out), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    found = {(r["case"], r["precision"], r["mode"], r["provider"]) for r in records}
    for case in ("tiny", "one-row"):
        for precision in ("highest", "high", "medium"):
            for mode in ("forward", "step"):
                for provider in ("kan_kernels", "reference", "nn.Linear", "three GEMMs, torch"):
                    assert (case, precision, mode, provider) in found
    assert ("tiny", "highest", "step", "reference + torch.compile") in found


def test_the_dry_run_needs_the_interpreter():
    done = run("--dry-run", TRITON_INTERPRET="0")
    assert done.returncode != 0
    assert "--dry-run needs TRITON_INTERPRET=1" in done.stderr
