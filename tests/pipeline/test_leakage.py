"""What the path through `train.main` trains never sees the test period."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from onerec.data.histories import Split
from onerec.data.prepared import PreparedData

BEHAVIOUR = [  # a tokenizer whose vectors are learnt from events
    "tokenizer.text={weight: 0, columns: [item_id], cache_folder: ''}",
    "tokenizer.behaviour={weight: 0.3, num_layers: 1, width: 8, num_heads: 2, training: {steps: 3, batch_size: 8}}",
]


@pytest.fixture
def marked(world: Path, tmp_path: Path) -> Path:
    """The same world, but every user's last event, the test event, is with one and the same item."""
    folder = shutil.copytree(world, tmp_path / "marked")
    events = pl.read_parquet(folder / "events.parquet")
    marker = events["item_id"].value_counts().sort("count")["item_id"][0]
    is_last = pl.col("timestamp") == pl.col("timestamp").max().over("user_id")
    is_last &= pl.len().over("user_id") >= 3  # fewer events are all for training
    changed = events.with_columns(item_id=pl.when(is_last).then(pl.lit(marker)).otherwise("item_id"))
    changed.write_parquet(folder / "events.parquet")
    return folder


def test_a_marker_in_the_test_period_changes_nothing_that_is_trained(
    run, world: Path, marked: Path, tmp_path: Path
) -> None:
    folders = {}
    for name, source in (("clean", world), ("marked", marked)):
        overrides = ["data.source=parquet", f"data.path={source}", "data.policies={duplicates: keep}", f"name={name}"]
        overrides += BEHAVIOUR
        for stage in ("data", "tokenizer", "pretrain"):
            assert run(*overrides, stage=stage) == 0
        folders[name] = tmp_path / name
    clean, other = (PreparedData.load(folder / "data").histories for folder in folders.values())
    differs = np.flatnonzero(clean.items != other.items)
    assert len(differs) > 30  # the marker did arrive, and in test events alone
    assert (clean.splits[differs] == Split.TEST).all()
    assert (other.items[differs] == other.items[differs[0]]).all()
    for part in ("offsets", "items", "timestamps", "splits"):
        np.testing.assert_array_equal(getattr(clean.training(), part), getattr(other.training(), part))
    unequal = {
        stage: {
            str(file.relative_to(folders["clean"] / stage))
            for file in (folders["clean"] / stage).rglob("*")
            if file.is_file()
            and file.read_bytes() != (folders["marked"] / file.relative_to(folders["clean"])).read_bytes()
        }
        for stage in ("tokenizer", "pretrain")
    }
    # The manifests name their inputs, and the log holds seconds.
    assert unequal["tokenizer"] == {"manifest.json"}
    assert unequal["pretrain"] == {"manifest.json", "log_history.json"}
    traces = [
        [
            {key: value for key, value in line.items() if key.startswith(("loss", "eval_recall", "eval_ndcg", "step"))}
            for line in json.loads((folder / "pretrain" / "log_history.json").read_text())
        ]
        for folder in folders.values()
    ]
    assert traces[0] == traces[1]
