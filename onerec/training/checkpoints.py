"""Checkpoints that are whole or absent: written aside, synced, and renamed into place."""

import os
import shutil
from pathlib import Path

from tokenizer.artifacts import sync_to_disk

PREFIX = "checkpoint-"
STAGING = "unfinished"


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
