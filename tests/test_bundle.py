"""The bundle: it comes back as it was written, and parts that do not belong together are refused."""

import dataclasses
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoConfig, AutoModel

from onerec.bundle import KIND, Bundle, build_trie, register_auto_classes
from onerec.decoding.recommender import OneRecRecommender
from onerec.errors import ArtifactError
from onerec.evaluation.results import RecommenderSummary
from onerec.model.onerec import OneRec
from tokenizer.artifacts import MANIFEST_NAME, write_manifest
from tokenizer.table import SemanticIdTable


@pytest.fixture
def copied(small_bundle, tmp_path):
    """A bundle that a test may spoil."""
    return shutil.copytree(small_bundle, tmp_path / "bundle")


def other_table(table: SemanticIdTable) -> SemanticIdTable:
    """The same catalogue with the codes of its items turned round."""
    return SemanticIdTable.of_unique(table.codes_NL[::-1], table.codes_per_level, table.item_ids)


def test_round_trip(small_run, small_bundle):
    bundle = Bundle.load(small_bundle)
    torch.testing.assert_close(bundle.model.state_dict(), small_run.model.state_dict(), rtol=0, atol=0)
    assert not bundle.model.training
    assert bundle.table.content_hash == small_run.table.content_hash
    assert bundle.items.columns == ["item_id", "title", "genre"]
    assert bundle.titles == [*(f"Film {key}" for key in range(100, 139)), "139"]
    assert bundle.manifest.inputs == {"data": "d" * 64, "pretrain": "p" * 64, "table": bundle.table.content_hash}

    histories = [np.array([3, 1, 4]), np.array([], dtype=np.int32), np.arange(20)]
    direct = OneRecRecommender(small_run.model, build_trie(small_run.table), num_beams=12)
    expected, found = (each.recommend(histories, 10, True) for each in (direct, bundle.recommender()))
    np.testing.assert_array_equal(found.items_BK, expected.items_BK)
    np.testing.assert_array_equal(found.scores_BK, expected.scores_BK)


def test_written_twice_is_the_same_bundle(small_run, small_bundle, tmp_path):
    again = Bundle.load(small_run.write_bundle(tmp_path / "again"))
    assert again.manifest.content_hash == Bundle.load(small_bundle).manifest.content_hash


def test_transformers_auto_classes_load_it(small_run, small_bundle):
    register_auto_classes()
    register_auto_classes()  # harmless when repeated
    assert AutoConfig.from_pretrained(small_bundle).codes_per_level == [6, 5, 4]
    model = AutoModel.from_pretrained(small_bundle)
    assert isinstance(model, OneRec)
    assert model.config.table_hash == small_run.table.content_hash


def test_a_swapped_table_is_a_changed_file(small_run, copied):
    other_table(small_run.table).save(copied / "table")
    with pytest.raises(ArtifactError, match=r"table.*found hash \w{64}, expected \w{64}"):
        Bundle.load(copied)


def test_a_swapped_table_is_refused_with_both_hashes_even_under_a_new_manifest(small_run, copied):
    other = other_table(small_run.table)
    other.save(copied / "table")
    write_manifest(copied, KIND, {}, "", Bundle.load(small_run.write_bundle(copied.parent / "b")).manifest.details)
    with pytest.raises(ArtifactError, match="trained on another ID table") as raised:
        Bundle.load(copied)
    assert small_run.table.content_hash in str(raised.value)
    assert other.content_hash in str(raised.value)


def test_another_catalogue_is_refused(copied):
    items = pl.read_parquet(copied / "items.parquet")
    items.reverse().write_parquet(copied / "items.parquet")
    write_manifest(copied, KIND, {}, "")
    with pytest.raises(ArtifactError, match="belongs to another catalogue"):
        Bundle.load(copied)


@pytest.mark.parametrize("name", ["model.safetensors", "items.parquet", "README.md", "table/codes.npy"])
def test_a_changed_file_is_refused(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[-1] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name}: found hash .* changed or damaged"):
        Bundle.load(copied)


@pytest.mark.parametrize("name", ["model.safetensors", MANIFEST_NAME])
def test_a_missing_file_is_refused(copied, name):
    (copied / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        Bundle.load(copied)


def test_parts_of_different_runs_are_not_written(small_run, tmp_path):
    with pytest.raises(ArtifactError, match="Train again"):
        dataclasses.replace(small_run, table=other_table(small_run.table)).write_bundle(tmp_path / "bundle")
    fewer = dataclasses.replace(small_run.data, items=small_run.data.items.head(39))
    with pytest.raises(ArtifactError, match="catalogue of 39 items, expected the 40"):
        dataclasses.replace(small_run, data=fewer).write_bundle(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_model_card_shows_what_was_measured(small_run, tmp_path):
    metric = small_run.results.under("test_unseen")["onerec"].metrics["recall@10"]
    summary = small_run.results.under("test_unseen")["onerec"].model_dump(exclude={"recall@10", "ndcg@10"})
    summary = RecommenderSummary(**summary, **{"recall@5": metric, "ndcg@5": metric})
    results = small_run.results.model_copy(update={"settings": {"ks": [1, 5]}, "test_unseen": {"onerec": summary}})
    folder = dataclasses.replace(small_run, results=results).write_bundle(tmp_path / "bundle")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| | Recall@5 | NDCG@5 | invalid items |" in card
    assert "| onerec | 0.1250 | 0.1250 | 0.0 |" in card


def test_model_card(small_run, small_bundle):
    card = (small_bundle / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# OneRec trained on small films\n")
    for line in (
        "Licence: CC0",
        f"| parameters | {small_run.model.num_parameters():,} |",
        "| semantic ID | 6 x 5 x 4 codes for 40 items |",
        "| history read | the newest 8 items |",
        "| beams | 12 |",
        f"| ID table | `{small_run.table.content_hash[:16]}` |",
        "Test, seen items excluded:",
        "| onerec | 0.1250 | 0.1250 | 0.0 |",
        "## Limits",
    ):
        assert line in card
    assert "seen items allowed:" not in card  # not evaluated, so no empty table
    assert "Citation" not in card
