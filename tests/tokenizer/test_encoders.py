from pathlib import Path

import numpy as np
import polars as pl
import pytest

import tokenizer.encoders as encoders
from tokenizer.config import GivenSettings, TextSettings
from tokenizer.encoders import given_vectors, item_texts, text_vectors
from tokenizer.errors import ArtifactError, ConfigError, DataError


@pytest.fixture
def titles() -> pl.DataFrame:
    return pl.DataFrame(
        {"item_id": ["a", "b", "c"], "title": ["red nail polish", " ", "steel hammer"], "brand": [None, None, "Ox"]}
    )


def test_the_template_is_followed(titles: pl.DataFrame) -> None:
    settings = TextSettings(columns=["brand", "title"], field_template="<{name}> {value}", separator=" / ")
    assert item_texts(titles, settings, []) == ["<title> red nail polish", "", "<brand> Ox / <title> steel hammer"]


def test_auto_means_the_columns_of_the_schema(titles: pl.DataFrame) -> None:
    assert item_texts(titles, TextSettings(), ["title"])[2] == "title: steel hammer"
    with pytest.raises(DataError, match="there are no text columns"):
        item_texts(titles, TextSettings(), [])
    with pytest.raises(DataError, match="no text column 'titel'"):
        item_texts(titles, TextSettings(columns=["titel"]), [])


def test_a_value_that_looks_like_the_template_is_left_alone() -> None:
    items = pl.DataFrame({"title": ["{name} tag"]})
    assert item_texts(items, TextSettings(columns=["title"]), []) == ["title: {name} tag"]


def test_too_many_items_without_text(titles: pl.DataFrame) -> None:
    with pytest.raises(DataError, match=r"1 of 3 have no text .* the first is row 1"):
        text_vectors(titles, TextSettings(columns=["title"], cache_folder=""), [])


def test_packaged_encoder_knows_meaning_and_caches(
    titles: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = pl.concat(
        [titles, pl.DataFrame({"item_id": ["d"], "title": ["crimson lacquer for nails"], "brand": [None]})],
        how="vertical_relaxed",
    )
    settings = TextSettings(columns=["title"], max_share_without_text=0.5, cache_folder=str(tmp_path))
    vectors, known = text_vectors(more, settings, [])
    assert vectors.shape == (4, 384)
    np.testing.assert_array_equal(known, [True, False, True, True])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 1, 1], atol=1e-5)
    assert vectors[0] @ vectors[3] > vectors[0] @ vectors[2] + 0.05
    monkeypatch.setattr(encoders, "_encode", lambda *_: pytest.fail("encoded again"))
    again, _ = text_vectors(more, settings, [])
    np.testing.assert_array_equal(again, vectors)
    next(tmp_path.glob("*.npy")).write_bytes(b"cut short")
    with pytest.raises(ArtifactError, match="Delete it"):
        text_vectors(more, settings, [])


def test_encoder_that_is_not_there(titles: pl.DataFrame) -> None:
    with pytest.raises(ConfigError, match="neither 'minilm' nor a folder"):
        text_vectors(titles, TextSettings(columns=["brand", "title"], encoder="bert", max_share_without_text=1), [])


def test_given_vectors_from_column_and_file(tmp_path: Path) -> None:
    rows = [[1.0, 2.0], [3.0, 4.0]]
    items = pl.DataFrame({"item_id": ["a", "b"], "vector": rows})
    np.testing.assert_array_equal(given_vectors(items, GivenSettings(source="vector")), np.float32(rows))
    fixed = items.with_columns(pl.col("vector").list.to_array(2))
    np.testing.assert_array_equal(given_vectors(fixed, GivenSettings(source="vector")), np.float32(rows))
    np.save(tmp_path / "v.npy", np.array(rows))
    np.testing.assert_array_equal(given_vectors(items, GivenSettings(source=str(tmp_path / "v.npy"))), np.float32(rows))


@pytest.mark.parametrize(
    ("rows", "width", "message"),
    [
        ([[1.0, 2.0]], None, r"found shape \(1, 2\), expected \(2, 2\)"),
        ([[1.0, 2.0], [3.0, 4.0]], 3, r"found shape \(2, 2\), expected \(2, 3\)"),
        ([[1.0, 2.0], [3.0, float("nan")]], None, "NaN or infinity, the first is row 1"),
        ([1.0, 2.0], None, r"shape \(2,\)"),
    ],
)
def test_given_file_of_the_wrong_form(tmp_path: Path, rows: list[list[float]], width: int | None, message: str) -> None:
    np.save(tmp_path / "v.npy", np.array(rows))
    items = pl.DataFrame({"item_id": ["a", "b"]})
    with pytest.raises(DataError, match=message):
        given_vectors(items, GivenSettings(source=str(tmp_path / "v.npy"), width=width))


def test_given_column_of_the_wrong_form(tmp_path: Path) -> None:
    ragged = pl.DataFrame({"vector": [[1.0, 2.0], [1.0], [3.0, 4.0]], "title": ["a", "b", "c"]})
    with pytest.raises(DataError, match="the first is row 1 with width 1"):
        given_vectors(ragged, GivenSettings(source="vector"))
    missing = pl.DataFrame({"vector": [[1.0, 2.0], None]})
    with pytest.raises(DataError, match="the first is row 1"):
        given_vectors(missing, GivenSettings(source="vector"))
    with pytest.raises(DataError, match="expected lists of numbers"):
        given_vectors(ragged, GivenSettings(source="title"))
    with pytest.raises(DataError, match="neither a column"):
        given_vectors(ragged, GivenSettings(source="vectors"))
    with pytest.raises(DataError, match="cannot read"):
        given_vectors(ragged, GivenSettings(source=str(tmp_path / "none.npy")))
