import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tokenizer.artifacts import read_manifest
from tokenizer.assignment import assign_items
from tokenizer.config import TokenizerSettings
from tokenizer.errors import ArtifactError, DataError
from tokenizer.fit import PIECES_NAME, fit_tokenizer, load_pieces
from tokenizer.sequences import Sequences

Make = Callable[..., TokenizerSettings]


@pytest.fixture
def newcomers(items: pl.DataFrame) -> pl.DataFrame:
    """Ten items that equal the first ten, and two old ones between them."""
    renamed = items.head(10).with_columns(pl.concat_str(pl.lit("new"), pl.col("item_id")).alias("item_id"))
    return pl.concat([renamed.head(4), items[50:52], renamed.tail(6)])


@pytest.mark.parametrize("policy", ["suffix", "reassign", "bucket"])
def test_old_items_keep_their_ids(
    items: pl.DataFrame, newcomers: pl.DataFrame, sequences: Sequences, make_settings: Make, tmp_path: Path, policy: str
) -> None:
    settings = make_settings(collisions={"policy": policy}, quantizer={"codes_per_level": [8, 8, 8], "iterations": 5})
    old = fit_tokenizer(items, sequences, settings, tmp_path / "old", {}, "cfg")
    new = assign_items(tmp_path / "old", newcomers, tmp_path / "new")
    np.testing.assert_array_equal(new.codes_NL[:120], old.codes_NL)
    np.testing.assert_array_equal(new.bucket_rank_N[:120], old.bucket_rank_N)
    assert new.item_ids == [*old.item_ids, *(f"newi{row}" for row in range(10))]
    assert new.codes_per_level == old.codes_per_level
    assert (
        read_manifest(tmp_path / "new", "tokenizer").inputs["tokenizer"]
        == read_manifest(tmp_path / "old", "tokenizer").content_hash
    )
    if policy != "reassign":  # twins without events: same first code as the item they equal, for most of them
        same = new.codes_NL[120:, 0] == old.codes_NL[:10, 0]
        assert same.mean() >= 0.6


def test_assigning_twice_goes_on_from_the_first(
    items: pl.DataFrame, newcomers: pl.DataFrame, sequences: Sequences, make_settings: Make, tmp_path: Path
) -> None:
    fit_tokenizer(items, sequences, make_settings(), tmp_path / "old", {}, "cfg")
    first = assign_items(tmp_path / "old", newcomers, tmp_path / "new")
    one_more = items.head(1).with_columns(item_id=pl.lit("one more"))
    second = assign_items(tmp_path / "new", one_more, tmp_path / "third")
    np.testing.assert_array_equal(second.codes_NL[:130], first.codes_NL)
    twins = np.flatnonzero((second.codes_NL[:, :2] == second.codes_NL[130, :2]).all(axis=1))
    assert second.codes_NL[130, 2] == len(twins) - 1  # the next free suffix


def test_new_items_are_cut_into_the_old_pieces(
    items: pl.DataFrame, newcomers: pl.DataFrame, sequences: Sequences, make_settings: Make, tmp_path: Path
) -> None:
    fit_tokenizer(items, sequences, make_settings(pieces={"vocabulary_size": 60}), tmp_path / "old", {}, "cfg")
    table = assign_items(tmp_path / "old", newcomers, tmp_path / "new")
    assert (tmp_path / "new" / PIECES_NAME).read_bytes() == (tmp_path / "old" / PIECES_NAME).read_bytes()
    pieces = load_pieces(tmp_path / "new", table)
    assert pieces is not None
    assert len(pieces.encode(table.codes_NL).offsets) == 131


def test_nothing_new_no_vectors_no_room(
    items: pl.DataFrame, newcomers: pl.DataFrame, sequences: Sequences, make_settings: Make, tmp_path: Path
) -> None:
    fit_tokenizer(items, sequences, make_settings(), tmp_path / "old", {}, "cfg")
    with pytest.raises(DataError, match="nothing to assign"):
        assign_items(tmp_path / "old", items, tmp_path / "new")
    narrow = newcomers.with_columns(pl.col("vector").list.head(3))
    with pytest.raises(DataError, match="found width 3, expected 8"):
        assign_items(tmp_path / "old", narrow, tmp_path / "new")
    collaborative = make_settings(
        given={"weight": 0}, collaborative={"weight": 1, "width": 8}, report={"max_bucket_share": 1}
    )
    fit_tokenizer(items, sequences, collaborative, tmp_path / "events_only", {}, "cfg")
    with pytest.raises(DataError, match="by training events alone"):
        assign_items(tmp_path / "events_only", newcomers, tmp_path / "new")
    full = make_settings(collisions={"policy": "reassign"}, quantizer={"codes_per_level": [11, 11], "iterations": 5})
    fit_tokenizer(items, sequences, full, tmp_path / "full", {}, "cfg")
    with pytest.raises(DataError, match="found 10 items for 1 free places"):
        assign_items(tmp_path / "full", newcomers, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_damaged_tokenizer(
    items: pl.DataFrame, newcomers: pl.DataFrame, sequences: Sequences, make_settings: Make, tmp_path: Path
) -> None:
    fit_tokenizer(items, sequences, make_settings(), tmp_path / "old", {}, "cfg")
    codebooks = tmp_path / "old/codebooks.safetensors"
    codebooks.write_bytes(codebooks.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="found hash"):
        assign_items(tmp_path / "old", newcomers, tmp_path / "new")
    shutil.rmtree(tmp_path / "old")
    with pytest.raises(ArtifactError, match="expected a finished 'tokenizer'"):
        assign_items(tmp_path / "old", newcomers, tmp_path / "new")
