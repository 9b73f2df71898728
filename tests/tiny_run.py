"""The smallest run of the whole path: its config, `train.main` on one, and what it leaves."""

from pathlib import Path
from typing import Any

import yaml

import train

_CONFIG = """
name: tiny
data:
  source: world
  world: {num_users: 60, num_items: 100, num_events: 900}
tokenizer:
  text: {weight: 0}
  collaborative: {width: 16}
  quantizer: {codes_per_level: [8, 8], iterations: 5}
model: {d_model: 16, num_heads: 2, d_ff: 32, num_context_layers: 1, num_decoder_layers: 1, max_history_items: 8}
training: {epochs: 1, evaluate_every_epochs: 1, max_positions_per_step: 256, warmup_steps: 2, logging_steps: 2}
decoding: {num_beams: 10}
evaluation: {ks: [1, 5, 10], bootstrap_samples: 20}
"""


def write_config(folder: Path, changes: str = "{}") -> Path:
    """`tiny.yaml` in a folder: the smallest config but for some values, given as YAML."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(_merged(yaml.safe_load(_CONFIG), yaml.safe_load(changes))))
    return path


def _merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    sections = [key for key in changes if isinstance(changes[key], dict) and isinstance(tree.get(key), dict)]
    return {**tree, **changes, **{key: _merged(tree[key], changes[key]) for key in sections}}


def run_stage(config: Path, runs: Path, *overrides: str, stage: str = "all") -> int:
    """The exit status of `train.main`, with overrides as `--set` takes them."""
    changes = [part for override in overrides for part in ("--set", override)]
    return train.main(["--config", str(config), "--runs", str(runs), "--stage", stage, *changes])


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file, which writing it again would alter."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
