"""Checkpoints that are whole or absent: written aside, synced, and renamed into place."""

import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer

from tokenizer.artifacts import sync_to_disk

PREFIX = "checkpoint-"
STAGING = "unfinished"
KEPT_CHECKPOINTS = 2


class StagedCheckpoints(Trainer):
    """A Trainer whose checkpoints are written aside and published when every process has written its part."""

    _checkpoint_root: Path

    def _write_beside(self, staged: Path) -> None:
        """Write what the subclass keeps with a checkpoint; all processes call it."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._checkpoint_root)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self._checkpoint_root
        self._checkpoint_root = folder / STAGING
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._checkpoint_root = folder
        staged = folder / STAGING / f"{PREFIX}{self.state.global_step}"
        self._write_beside(staged)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            publish_checkpoint(staged, folder, keep=KEPT_CHECKPOINTS)
        self.accelerator.wait_for_everyone()


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest finished checkpoint of a training, None if there is none."""
    finished = finished_checkpoints(folder)
    return finished[-1] if finished else None


def finished_checkpoints(folder: Path) -> list[Path]:
    """All finished checkpoints, oldest first."""
    paths = [path for path in folder.glob(PREFIX + "*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(paths, key=lambda path: int(path.name.removeprefix(PREFIX)))


def publish_checkpoint(staged: Path, folder: Path, keep: int) -> Path:
    """Sync a staged checkpoint to disk, move it to its place and delete all but the newest `keep`."""
    for file in sorted(staged.rglob("*")):
        sync_to_disk(file)
    final = folder / staged.name
    if final.exists():
        shutil.rmtree(final)
    os.replace(staged, final)
    sync_to_disk(folder)
    for old in finished_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final
