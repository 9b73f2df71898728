"""A small catalogue with buckets, a model of it far from uniform, and users who walk through it in a circle."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onerec.bundle import write_bundle
from onerec.config import RunConfig
from onerec.data.histories import Histories, Split
from onerec.data.prepared import prepare
from onerec.decoding.trie import Trie
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from tokenizer.settings import dump_yaml
from tokenizer.table import SemanticIdTable

NUM_ITEMS = 14
SIZES = (3, 4, 2)


@dataclass(frozen=True)
class Toy:
    """What most tests of reinforcement learning begin with."""

    model: OneRec
    trie: Trie
    codes_NL: np.ndarray
    histories: Histories


@pytest.fixture
def toy() -> Toy:
    rng = np.random.default_rng(0)
    codes_NL = rng.integers(0, SIZES, (NUM_ITEMS, len(SIZES)))
    codes_NL[1] = codes_NL[0]  # a bucket
    torch.manual_seed(0)
    config = OneRecConfig(SIZES, NUM_ITEMS, d_model=16, d_ff=32, max_history_items=4, dropout=0.0)
    model = OneRec(config).eval()
    model.set_codes(codes_NL, "hash")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    trie = Trie.from_table(codes_NL, SIZES, np.arange(NUM_ITEMS))
    return Toy(model, trie, codes_NL, circular_histories())


def circular_histories(num_users: int = 12, length: int = 7) -> Histories:
    """User u starts at item u; the last two events are held out. Watched 1 to 7 seconds, in the order of time."""
    items = (np.arange(num_users)[:, None] + np.arange(length)) % NUM_ITEMS
    splits = np.tile([Split.TRAIN] * (length - 2) + [Split.VALIDATION, Split.TEST], num_users)
    times = np.tile(np.arange(length), num_users)
    offsets = np.arange(num_users + 1, dtype=np.int64) * length
    feedback = {"watch_seconds": (times + 1).astype(np.float32)}
    return Histories(offsets, items.astype(np.int32).ravel(), times, splits.astype(np.uint8), feedback)


@pytest.fixture(scope="session")
def world_run(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run in a small world with bundles of two untrained models, `bundle` and `align-bundle`; read only."""
    world = {"num_users": 250, "num_items": 100, "num_events": 5_000, "seed": 8}
    data = {"source": "world", "world": world, "min_feedback": {"click": 1}, "core": {"user_events": 3}}
    config = RunConfig(name="small-world", data=data, decoding={"num_beams": 10})
    run = tmp_path_factory.mktemp("runs") / config.name
    prepared = prepare(config.data, run / "data")
    (run / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    sizes = (6, 6, 4)
    flat_N = np.random.default_rng(0).choice(int(np.prod(sizes)), prepared.num_items, replace=False)
    table = SemanticIdTable.of_unique(np.stack(np.unravel_index(flat_N, sizes), axis=1), sizes, map(str, range(100)))
    inputs = {"data": prepared.manifest.content_hash, "pretrain": "p" * 64}
    for seed, name in enumerate(("bundle", "align-bundle")):
        torch.manual_seed(seed)
        model = OneRec(OneRecConfig(sizes, prepared.num_items, d_model=16, d_ff=32, max_history_items=8)).eval()
        model.set_codes(table.codes_NL, table.content_hash)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.0)
        write_bundle(run / name, model, table, prepared, small_run.results, config, inputs)
    return run
