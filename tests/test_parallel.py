"""DDP, FSDP2, tensor parallelism and distributed checkpoints on 2 and 4 processes give the results of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

ranks = pytest.importorskip("ranks", reason="torch was built without torch.distributed")

TESTS = Path(__file__).parent


@pytest.fixture(scope="module", params=[2, 4])
def told(request, tmp_path_factory):
    """Run all checks. Return the folder to which every rank wrote its results, and the number of ranks."""
    folder = tmp_path_factory.mktemp(f"ranks-{request.param}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(request.param)]
    run = subprocess.run(
        [*launch, "ranks.py", str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=TESTS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return folder, request.param


@pytest.mark.parametrize("check", ranks.CHECKS)
def test_every_rank(told, check):
    folder, count = told
    for rank in range(count):
        assert (folder / f"{check}.{rank}").read_text() == ""


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # because of no_dist
@pytest.mark.parametrize("kind", ["fsdp", "tp"])
def test_one_process_reads_what_several_saved(told, kind):
    folder, _ = told
    net = ranks.mixed(seed=5)
    state = net.state_dict()
    dcp.load(state, checkpoint_id=str(folder / kind), no_dist=True)
    net.load_state_dict(state)
    for value, expected in zip(net.state_dict().values(), ranks.mixed(seed=3).state_dict().values(), strict=True):
        assert torch.equal(value, expected)
