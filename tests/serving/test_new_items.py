"""Places kept for new items, from a run's config through its bundle to the answers of the server."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onerec.bundle import Bundle, build_trie
from onerec.config import DecodingSettings, RunConfig
from onerec.data.histories import Histories
from onerec.decoding.new_items import NewItemSlots
from onerec.decoding.recommender import OneRecRecommender
from onerec.errors import ConfigError
from onerec.serving.catalogue import Catalogue
from onerec.serving.changes import ItemChange
from onerec.serving.engine import Engine
from onerec.serving.limits import Limits
from onerec.serving.schema import RecommendRequest
from tokenizer.assignment import NewId
from tokenizer.settings import load_settings

NUM_TRAINED, SLOTS = 30, 3  # of 40 items
HISTORIES = [np.array([3, 1, 4]), np.array([], dtype=np.int64), np.arange(20)]


@pytest.fixture(scope="module")
def bundle(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of a run whose training events hold the first 30 items."""
    rows = np.arange(38)
    splits = np.where(rows < NUM_TRAINED, 0, 2).astype(np.uint8)  # a held-out event makes no item an old one
    histories = Histories(np.array([0, len(rows)]), rows.astype(np.int32), rows, splits)
    data = dataclasses.replace(small_run.data, histories=histories)
    decoding = DecodingSettings(num_beams=12, new_item_slots=SLOTS)
    config = small_run.config.model_copy(update={"decoding": decoding})
    run = dataclasses.replace(small_run, data=data, config=config)
    return Bundle.load(run.write_bundle(tmp_path_factory.mktemp("slots") / "bundle"))


def count_new(items: np.ndarray) -> np.ndarray:
    return np.asarray((items >= NUM_TRAINED).sum(axis=-1))


def test_a_bundle_recommends_as_its_run_was_evaluated(bundle: Bundle, small_run: Any) -> None:
    slots = NewItemSlots(SLOTS, np.arange(40) < NUM_TRAINED)
    direct = OneRecRecommender(small_run.model, build_trie(small_run.table), num_beams=12, new_items=slots)
    expected, found = (each.recommend(HISTORIES, 6, True) for each in (direct, bundle.recommender()))
    np.testing.assert_array_equal(found.items_BK, expected.items_BK)
    np.testing.assert_array_equal(found.scores_BK, expected.scores_BK)
    plain = OneRecRecommender(small_run.model, build_trie(small_run.table), num_beams=12).recommend(HISTORIES, 6, True)
    assert (count_new(found.items_BK) >= SLOTS).all()
    assert (count_new(plain.items_BK) < SLOTS).any()


def test_a_bundle_without_places_knows_nothing_of_them(small_bundle: Path) -> None:
    assert Bundle.load(small_bundle).new_items is None
    assert not (small_bundle / "trained_items.npy").exists()


def test_requests_of_other_lengths_are_searched_apart(bundle: Bundle, small_bundle: Path) -> None:
    engine, plain = (Engine(each, Limits()) for each in (bundle, Bundle.load(small_bundle)))
    long, short = (RecommendRequest(history=[103, 101, 104], k=k) for k in (9, 4))
    assert engine.query(long).kind != engine.query(short).kind
    assert engine.query(short).kind == engine.query(short).kind
    assert plain.query(long).kind == plain.query(short).kind
    items = [item.id for item in engine.answer([engine.query(short)])[0].items]
    assert sum(item >= 100 + NUM_TRAINED for item in items) >= SLOTS


def test_what_joins_the_catalogue_is_new(bundle: Bundle) -> None:
    catalogue = Catalogue.of(bundle)
    taken = {tuple(codes) for codes in bundle.table.codes_NL.tolist()}
    free = next(codes for codes in np.ndindex(*bundle.table.codes_per_level) if codes not in taken)
    joins = ItemChange("900", {}, None, new_id=NewId(free, 0), table_hash=bundle.table.content_hash)
    gone = [ItemChange(str(100 + item), {}, None, removed=True) for item in range(NUM_TRAINED, 40)]
    after = catalogue.change([joins, *gone]).recommender
    found = after.search(after.encode(HISTORIES), 6).items_BK
    assert (count_new(found) == 1).all()
    assert (found == 40).any(axis=1).all()


def test_whole_lists_have_no_places_to_keep() -> None:
    lists = ["model.session_items=2", "data.sessions={}", "decoding.new_item_slots=1"]
    with pytest.raises(ConfigError, match=r"decoding\.new_item_slots: found 1 beside model\.session_items 2"):
        load_settings(RunConfig, None, lists)
