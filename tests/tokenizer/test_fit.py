import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tokenizer.artifacts import read_manifest
from tokenizer.config import TokenizerSettings
from tokenizer.errors import DataError
from tokenizer.fit import PIECES_NAME, fit_tokenizer, load_pieces
from tokenizer.pieces import SemanticIdPieces
from tokenizer.sequences import Sequences
from tokenizer.table import SemanticIdTable

Make = Callable[..., TokenizerSettings]


def _fit(
    items: pl.DataFrame, sequences: Sequences, settings: TokenizerSettings, folder: Path, **more: Any
) -> SemanticIdTable:
    return fit_tokenizer(items, sequences, settings, folder, {"data": "abc"}, "cfg", **more)


@pytest.mark.parametrize("policy", ["suffix", "reassign", "bucket"])
def test_the_artefact_is_whole(
    items: pl.DataFrame, sequences: Sequences, make_settings: Make, tmp_path: Path, policy: str
) -> None:
    quantizer = {"codes_per_level": [12, 12], "iterations": 5}
    table = _fit(items, sequences, make_settings(collisions={"policy": policy}, quantizer=quantizer), tmp_path / "tok")
    manifest = read_manifest(tmp_path / "tok", "tokenizer")
    assert manifest.inputs == {"data": "abc"}
    assert manifest.config_hash == "cfg"
    assert manifest.details["table_hash"] == table.content_hash
    stored = SemanticIdTable.load(tmp_path / "tok", items["item_id"].to_list())
    assert stored.content_hash == table.content_hash
    report = json.loads((tmp_path / "tok/report.json").read_text())
    assert report["before"]["num_colliding"] > 0
    assert (report["after"]["num_colliding"] == 0) == (policy != "bucket")
    page = (tmp_path / "tok/report.html").read_text()
    assert page.count("<svg") == 3
    assert "src=" not in page
    assert np.load(tmp_path / "tok/vectors.npy").shape == (120, 12)


def test_same_input_same_artefact(
    items: pl.DataFrame, sequences: Sequences, make_settings: Make, tmp_path: Path
) -> None:
    hashes = []
    for name in ("first", "second"):
        _fit(items, sequences, make_settings(), tmp_path / name)
        hashes.append(read_manifest(tmp_path / name, "tokenizer").files)
    assert hashes[0] == hashes[1]


def test_pieces_are_part_of_the_artefact_where_asked_for(
    items: pl.DataFrame, sequences: Sequences, make_settings: Make, tmp_path: Path
) -> None:
    without = _fit(items, sequences, make_settings(), tmp_path / "without")
    assert load_pieces(tmp_path / "without", without) is None
    table = _fit(items, sequences, make_settings(pieces={"vocabulary_size": 60}), tmp_path / "tok")
    assert PIECES_NAME in read_manifest(tmp_path / "tok", "tokenizer").files
    stored = load_pieces(tmp_path / "tok", table)
    assert stored is not None
    events_N = sequences.item_counts(len(items))
    fitted = SemanticIdPieces.fit(table.codes_NL, table.codes_per_level, events_N, 60)
    np.testing.assert_array_equal(stored.encode(table.codes_NL).pieces_P, fitted.encode(table.codes_NL).pieces_P)


def test_collapse_is_an_error_with_a_report(sequences: Sequences, make_settings: Make, tmp_path: Path) -> None:
    equal = pl.DataFrame({"item_id": [f"i{row}" for row in range(120)], "vector": [[1.0, 2.0]] * 120})
    settings = make_settings(collaborative={"weight": 0}, fusion={"centre": False})
    with pytest.raises(DataError, match="all 120 items have the same codes") as caught:
        _fit(equal, sequences, settings, tmp_path / "tok")
    assert "level 1 uses 1 of 8" in str(caught.value)
    assert not (tmp_path / "tok").exists()
    assert (tmp_path / "tok.failed/report.html").is_file()


def test_a_failed_fit_leaves_the_last_good_one(
    items: pl.DataFrame, sequences: Sequences, make_settings: Make, tmp_path: Path
) -> None:
    table = _fit(items, sequences, make_settings(), tmp_path / "tok")
    with pytest.raises(DataError, match="min_perplexity_share"):
        _fit(items, sequences, make_settings(report={"min_perplexity_share": 1.0}), tmp_path / "tok")
    assert SemanticIdTable.load(tmp_path / "tok").content_hash == table.content_hash


def test_catalogue_larger_than_the_code_space(
    items: pl.DataFrame, sequences: Sequences, make_settings: Make, tmp_path: Path
) -> None:
    settings = make_settings(collisions={"policy": "reassign"}, quantizer={"codes_per_level": [5, 5], "iterations": 4})
    with pytest.raises(DataError, match="found 120 items for 25 free places in 5 x 5 codes"):
        _fit(items, sequences, settings, tmp_path / "tok")


def test_bad_item_tables(items: pl.DataFrame, sequences: Sequences, make_settings: Make, tmp_path: Path) -> None:
    cases = [
        (items.rename({"item_id": "id"}), "expected one named item_id"),
        (items.head(0), "the table is empty"),
        (items.with_columns(pl.when(pl.col("item_id") != "i3").then("item_id").alias("item_id")), "first in row 3"),
        (items.with_columns(pl.col("item_id").replace("i7", "i2")), "the first is 'i2' in row 7"),
        (items.head(50), "Events and items come from different data"),
    ]
    for table, message in cases:
        with pytest.raises(DataError, match=message):
            _fit(table, sequences, make_settings(), tmp_path / "tok")


def test_whole_numbers_may_be_item_ids(
    items: pl.DataFrame, sequences: Sequences, make_settings: Make, tmp_path: Path
) -> None:
    numbered = items.with_columns(pl.int_range(1000, 1120).alias("item_id"))
    assert _fit(numbered, sequences, make_settings(), tmp_path / "tok").index_of("1003") == 3


def test_cold_items_stand_among_their_kind(items: pl.DataFrame, make_settings: Make, tmp_path: Path) -> None:
    """Item 119 has no event; its collaborative part is predicted from its vector and must resemble its kind's."""
    random = np.random.default_rng(2)
    rows = [np.minimum(random.integers(0, 10, 8) * 12 + user % 12, 118) for user in range(60)]
    sequences = Sequences(np.arange(0, 481, 8), np.concatenate(rows))
    _fit(items, sequences, make_settings(collaborative={"weight": 0.5, "width": 12}), tmp_path / "tok")
    part = np.load(tmp_path / "tok/vectors.npy")[:, 8:]
    similarity = part @ part[119] / (np.linalg.norm(part, axis=1) * np.linalg.norm(part[119]) + 1e-9)
    kind = np.arange(119) % 12 == 11
    assert similarity[:119][kind].mean() > similarity[:119][~kind].mean() + 0.3
    assert json.loads((tmp_path / "tok/report.json").read_text())["items_unknown"]["collaborative"] >= 1
