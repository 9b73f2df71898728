"""A process whose peer is killed says so; errors of other kinds pass as they are."""

import subprocess
import sys
from pathlib import Path

import pytest

from onerec.training.failures import explained_failures
from onerec.training.settings import TrainingSettings

ROOT = Path(__file__).parents[2]
LONGEST_RUN_S = 200
PEER = """
import os, signal, sys
import torch
from onerec.errors import OneRecError
from onerec.training.failures import explained_failures
from onerec.training.settings import TrainingSettings

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.distributed.barrier()
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    with explained_failures(TrainingSettings()):
        while True:
            torch.distributed.all_reduce(torch.ones(4))
except OneRecError as error:
    sys.exit(str(error))
"""


def test_survivor_of_a_killed_process_says_so(tmp_path: Path) -> None:
    peers = [
        subprocess.Popen(
            [sys.executable, "-c", PEER, str(rank), str(tmp_path / "store")],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    _, message = peers[0].communicate(timeout=LONGEST_RUN_S)
    peers[1].communicate(timeout=LONGEST_RUN_S)
    assert peers[1].returncode == -9
    assert "another process of this run has ended" in message
    assert "last checkpoint is whole" in message


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="a defect"), explained_failures(TrainingSettings()):
        raise RuntimeError("a defect")
