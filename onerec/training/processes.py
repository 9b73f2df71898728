"""The processes of a run: one, or those that torchrun has started."""

from datetime import timedelta

import torch
from accelerate import PartialState

# Others wait while the main process encodes a catalogue or validates; torchrun ends them at once where it fails.
LONGEST_WAIT = timedelta(days=1)


def join_processes() -> PartialState:
    """Join the group of processes that torchrun has started, or stand alone."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)
