"""A process whose peer is killed says so; errors of other kinds pass as they are."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from onerec.errors import OneRecError
from onerec.training.failures import explained_failures
from onerec.training.settings import TrainingSettings
from tests.processes import started

LONGEST_RUN_S = 200


def reduce_with_a_peer(rank: int, store: Path) -> None:
    """Two processes sum in a loop, of which the second kills itself; an error meant for users is printed."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.distributed.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        with explained_failures(TrainingSettings()):
            while True:
                torch.distributed.all_reduce(torch.ones(4))
    except OneRecError as error:
        sys.exit(str(error))


def test_survivor_of_a_killed_process_says_so(tmp_path: Path) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    with started(reduce_with_a_peer, 0, store, log=log) as survivor, started(reduce_with_a_peer, 1, store) as killed:
        survivor.join(LONGEST_RUN_S)
        killed.join(LONGEST_RUN_S)
        assert (survivor.exitcode, killed.exitcode) == (1, -signal.SIGKILL)
    message = log.read_text()
    assert "another process of this run has ended" in message
    assert "last checkpoint is whole" in message


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="a defect"), explained_failures(TrainingSettings()):
        raise RuntimeError("a defect")
