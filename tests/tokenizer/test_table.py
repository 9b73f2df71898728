import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tokenizer.errors import ArtifactError, DataError
from tokenizer.table import SemanticIdTable, hash_item_ids, pack_codes


@pytest.fixture
def table() -> SemanticIdTable:
    codes = np.array([[0, 1], [2, 0], [0, 1], [1, 1]], dtype=np.int32)
    return SemanticIdTable(codes, (3, 2), ["a", "b", "c", "d"], np.array([1, 0, 0, 0], dtype=np.int32))


def test_looks_up_both_ways(table: SemanticIdTable) -> None:
    assert table.codes_of("b") == (2, 0)
    assert table.items_with((2, 0)) == [1]
    assert table.items_with((0, 1)) == [2, 0]  # by rank, not by index


def test_is_strict_both_ways(table: SemanticIdTable) -> None:
    with pytest.raises(DataError, match="'z'"):
        table.codes_of("z")
    with pytest.raises(DataError, match=r"no item .* has it"):
        table.items_with((1, 0))
    with pytest.raises(DataError, match="no item"):
        table.items_with((0, 3))  # packs to the key of (1, 1) if ranges are not checked
    with pytest.raises(DataError, match="found 3 codes, expected 2"):
        table.items_with((0, 1, 0))


def test_looks_up_many_ids_as_it_does_one(table: SemanticIdTable) -> None:
    found = table.indices_of(["c", "a", "c"])
    assert found.dtype == np.int64
    assert found.tolist() == [table.index_of(item_id) for item_id in ("c", "a", "c")]
    assert table.indices_of([]).shape == (0,)
    messages = []
    for look_up in (lambda: table.indices_of(["a", "z", "b"]), lambda: table.index_of("z")):
        with pytest.raises(DataError, match="'z'") as refusal:
            look_up()
        messages.append(str(refusal.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("codes", "levels", "ids", "ranks", "message"),
    [
        ([[0, 2]], (3, 2), ["a"], [0], "level 1 lie outside 0..1"),
        ([[0, 1], [0, 1]], (3, 2), ["a", "b"], [0, 0], "share codes and rank"),
        ([[0, 1], [0, 0]], (3, 2), ["a", "a"], [0, 0], "repeats"),
        ([[0, 1]], (3, 2), ["a", "b"], [0, 0], r"expected int32 of shape \(2, 2\)"),
        ([[0, 1]], (3, 2), ["a"], [0, 0], "bucket ranks"),
        ([[0, 1]], (2**40, 2**40), ["a"], [0], "64 bits"),
    ],
)
def test_refuses_what_is_not_a_table(
    codes: list[list[int]], levels: tuple[int, ...], ids: list[str], ranks: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        SemanticIdTable(np.array(codes, dtype=np.int32), levels, ids, np.array(ranks, dtype=np.int32))


def test_survives_the_disk(table: SemanticIdTable, tmp_path: Path) -> None:
    table.save(tmp_path)
    loaded = SemanticIdTable.load(tmp_path, ["a", "b", "c", "d"])
    assert loaded.content_hash == table.content_hash
    assert loaded.items_with((0, 1)) == [2, 0]


def test_refuses_another_catalogue_showing_both_hashes(table: SemanticIdTable, tmp_path: Path) -> None:
    table.save(tmp_path)
    other = ["a", "b", "d", "c"]
    with pytest.raises(ArtifactError, match="another catalogue") as caught:
        SemanticIdTable.load(tmp_path, other)
    assert table.catalogue_hash in str(caught.value)
    assert hash_item_ids(other) in str(caught.value)


def test_refuses_changed_and_truncated_files(table: SemanticIdTable, tmp_path: Path) -> None:
    table.save(tmp_path)
    np.save(tmp_path / "codes.npy", table.codes_NL[:, ::-1].clip(max=1))
    with pytest.raises(ArtifactError):
        SemanticIdTable.load(tmp_path)
    table.save(tmp_path)
    ids = tmp_path / "item_ids.parquet"
    ids.write_bytes(ids.read_bytes()[:40])
    with pytest.raises(ArtifactError, match="not a readable ID table"):
        SemanticIdTable.load(tmp_path)
    with pytest.raises(ArtifactError, match="not a readable ID table"):
        SemanticIdTable.load(tmp_path / "nowhere")


def test_refuses_codes_beside_other_item_ids(table: SemanticIdTable, tmp_path: Path) -> None:
    table.save(tmp_path)
    pl.DataFrame({"item_id": ["a", "b", "d", "c"]}).write_parquet(tmp_path / "item_ids.parquet")
    with pytest.raises(ArtifactError, match="found hash"):
        SemanticIdTable.load(tmp_path)


def test_stored_facts_name_the_levels(table: SemanticIdTable, tmp_path: Path) -> None:
    table.save(tmp_path)
    assert json.loads((tmp_path / "table.json").read_text())["codes_per_level"] == [3, 2]


def test_ids_joined_differently_hash_differently() -> None:
    assert hash_item_ids(["ab", "c"]) != hash_item_ids(["a", "bc"])


def test_keys_sort_as_codes_do() -> None:
    codes = np.array([[1, 0, 2], [0, 4, 1], [1, 0, 0]])
    np.testing.assert_array_equal(pack_codes(codes, (2, 5, 3)), [17, 13, 15])
