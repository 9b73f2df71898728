"""The catalogue from change to change: who has which ID, what a search may reach, what is placed where."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from onerec.bundle import Bundle, write_bundle
from onerec.errors import ArtifactError, ServingError
from onerec.serving.catalogue import CannotPlaceError, Catalogue
from onerec.serving.changes import ItemChange
from onerec.serving.filters import Filter
from tokenizer.artifacts import read_manifest
from tokenizer.assignment import Assigner
from tokenizer.table import SemanticIdTable

HISTORY = np.array([3, 17])


@pytest.fixture(scope="module")
def catalogue(live_bundle: Path) -> Catalogue:
    return Catalogue.of(Bundle.load(live_bundle))


def vector_of(items: pl.DataFrame, row: int) -> tuple[float, ...]:
    return tuple(items["vector"][row].to_list())


def join(catalogue: Catalogue, item_id: str, vector: tuple[float, ...], **fields: object) -> Catalogue:
    return catalogue.change([catalogue.place(ItemChange(item_id, fields, vector))])  # type: ignore[arg-type]


def everything(catalogue: Catalogue) -> dict[int, float]:
    """Score by index of all items that come back when as many are asked for."""
    found = catalogue.recommender.search(catalogue.recommender.encode([HISTORY]), 60, num_beams=60)
    pairs = zip(found.items_BK[0].tolist(), found.scores_BK[0].tolist(), strict=True)
    return {item: score for item, score in pairs if item >= 0}


def test_a_new_item_stands_beside_its_twin_and_nothing_else_moves(
    catalogue: Catalogue, live_items: pl.DataFrame
) -> None:
    after = join(catalogue, "500", vector_of(live_items, 7), title="Twin", year=2024)
    assert after.table.codes_NL[40, :2].tolist() == catalogue.table.codes_NL[7, :2].tolist()
    taken = catalogue.table.codes_NL[(catalogue.table.codes_NL[:, :2] == catalogue.table.codes_NL[7, :2]).all(axis=1)]
    assert after.table.codes_NL[40, 2] == taken[:, 2].max() + 1  # the next suffix
    assert after.view(40).model_dump() == {
        "id": 500,
        "title": "Twin",
        "semantic_id": after.table.codes_NL[40].tolist(),
        "available": True,
        "fields": {"title": "Twin", "genre": None, "year": 2024},
    }
    scores, before = everything(after), everything(catalogue)
    assert set(scores) == set(range(41))
    assert {item: scores[item] for item in range(40)} == pytest.approx(before, abs=1e-5)
    assert (catalogue.table.num_items, catalogue.recommender.trie.num_items) == (40, 40)  # a search goes on with it


def test_the_vector_may_come_with_a_history_that_holds_the_new_item(
    catalogue: Catalogue, live_items: pl.DataFrame
) -> None:
    after = join(catalogue, "500", vector_of(live_items, 7))
    first, second = (after.recommender.encode([np.array([3, item])]).states_BSD for item in (40, 7))
    assert first.isfinite().all()
    assert (first[0, :2] == second[0, :2]).all()
    assert (first[0, 2] != second[0, 2]).any()


def test_a_removed_item_is_never_found_but_still_read_and_comes_back_as_it_was(catalogue: Catalogue) -> None:
    without = catalogue.change([ItemChange("105", removed=True), ItemChange("117", removed=True)])
    assert set(everything(without)) == set(range(40)) - {5, 17}
    assert (without.num_available, without.is_removed("105"), without.is_removed("104")) == (38, True, False)
    assert without.find("105") == 5
    states = [each.recommender.encode([HISTORY]).states_BSD for each in (without, catalogue)]
    assert (states[0] == states[1]).all()  # 117 is part of the history
    assert everything(without.change([ItemChange("105"), ItemChange("117")])) == everything(catalogue)
    with pytest.raises(ServingError, match="the last one"):
        catalogue.change([ItemChange(str(item), removed=True) for item in range(100, 140)])


def test_fields_of_an_item_change_and_its_semantic_id_does_not(catalogue: Catalogue) -> None:
    after = catalogue.change([catalogue.place(ItemChange("103", {"title": "New", "year": 7}, (1.0,) * 6))])
    assert after.view(3).fields == {"title": "New", "genre": "noir", "year": 7}
    assert after.view(3).title == "New"
    assert after.view(4) == catalogue.view(4)
    assert after.table is catalogue.table
    assert after.recommender is catalogue.recommender


@pytest.mark.parametrize("policy", ["suffix", "reassign", "bucket"])
def test_collisions_follow_the_policy_of_the_table(
    make_live_bundle: Callable[..., Path],
    live_items: pl.DataFrame,
    policy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quantizer = {"codes_per_level": [7, 7], "iterations": 5}
    first = Catalogue.of(Bundle.load(make_live_bundle(collisions={"policy": policy}, quantizer=quantizer)))
    capsys.readouterr()
    twice = join(join(first, "500", vector_of(live_items, 7)), "501", vector_of(live_items, 7))
    codes, ranks = twice.table.codes_NL[[7, 40, 41]].tolist(), twice.table.bucket_rank_N[[7, 40, 41]].tolist()
    if policy == "suffix":
        assert codes[1][:2] == codes[2][:2] == codes[0][:2]
        assert codes[2][2] == codes[1][2] + 1
    elif policy == "reassign":
        assert len({tuple(row) for row in codes}) == 3
    else:
        assert codes[0] == codes[1] == codes[2]
        assert ranks[0] < ranks[1] == ranks[2] - 1
    assert set(everything(twice)) == set(range(42))
    assert capsys.readouterr().err == ""  # a bar of progress would stand between the lines of the log


def test_where_no_room_is_left_a_new_item_is_refused(
    make_live_bundle: Callable[..., Path], live_items: pl.DataFrame
) -> None:
    quantizer = {"codes_per_level": [7, 6], "iterations": 5}
    full = Catalogue.of(Bundle.load(make_live_bundle(collisions={"policy": "reassign"}, quantizer=quantizer)))
    for item_id in ("500", "501"):
        full = join(full, item_id, vector_of(live_items, 7))
    full = full.change([ItemChange("105", removed=True)])  # it may come back, so its place stays its own
    with pytest.raises(ServingError, match="item '502': catalogue: found 1 items for 0 free places in 7 x 6 codes"):
        join(full, "502", vector_of(live_items, 7))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (ItemChange("500"), "expected a vector of width 6, found neither"),
        (ItemChange("500", vector=(1.0, 2.0)), "found a width of 2, the tokenizer expects a width of 6"),
        (ItemChange("film", vector=(1.0,) * 6), "id: found 'film', expected one of type Int64"),
        (ItemChange("0500", vector=(1.0,) * 6), "id: found '0500'"),
        (ItemChange("500", {"year": "soon"}, (1.0,) * 6), "fields.year: found 'soon', expected a value of type Int64"),
        (ItemChange("103", {"title": 7}), "fields.title: found 7, expected a value of type String"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(catalogue: Catalogue, change: ItemChange, reason: str) -> None:
    with pytest.raises(ServingError, match=reason):
        catalogue.change([catalogue.place(change)])


def test_text_alone_places_an_item(make_live_bundle: Callable[..., Path], live_items: pl.DataFrame) -> None:
    text = {"weight": 0.9, "columns": ["genre"], "cache_folder": ""}
    given = {"weight": 0.1, "source": "vector"}
    catalogue = Catalogue.of(Bundle.load(make_live_bundle(text=text, given=given)))
    placed = catalogue.place(ItemChange("500", {"genre": "horror"}))
    assert placed.new_id is not None
    kinds = [set(catalogue.table.codes_NL[kind::4, 0].tolist()) for kind in range(4)]
    assert placed.new_id.codes[0] in kinds[2]
    assert all(placed.new_id.codes[0] not in kinds[kind] for kind in (0, 3))
    with pytest.raises(ServingError, match="expected text in genre or a vector of width 6, found neither"):
        catalogue.place(ItemChange("501", {"title": "no genre", "genre": " "}))


def test_a_tokenizer_of_events_alone_cannot_place(make_live_bundle: Callable[..., Path]) -> None:
    events = {"given": {"weight": 0}, "collaborative": {"weight": 1, "width": 2}}
    quantizer = {"codes_per_level": [2, 2], "iterations": 2}
    lenient = {"max_bucket_share": 1, "min_level_use": 0, "min_perplexity_share": 0}
    bundle = Bundle.load(make_live_bundle(**events, quantizer=quantizer, report=lenient))
    with pytest.raises(ServingError, match="by training events alone"):
        Catalogue.of(bundle).place(ItemChange("500", {"title": "x"}))


# ---- filters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (Filter(columns=(("genre", ("horror",)),)), {item for item in range(40) if item % 4 == 2}),
        (Filter(columns=(("genre", ("drama",)),)), {item for item in range(40) if item % 4 < 2}),
        (Filter(columns=(("genre", ("comedy|drama", "noir")),)), {item for item in range(40) if item % 4 in (1, 3)}),
        (Filter(columns=(("genre", ("drama",)), ("year", ("1991",)))), {1, 4, 13, 16, 25, 28, 37}),
        (Filter(items=(4, 9, 9)), {4, 9}),
        (Filter(items=(1, 2, 3), columns=(("year", ("1990", "1992")),)), {2, 3}),
        (Filter(columns=(("genre", ("dra",)),)), set()),
        (Filter(items=()), set()),
    ],
)
def test_only_what_passes_is_found_and_all_of_it(catalogue: Catalogue, chosen: Filter, expected: set[int]) -> None:
    recommender = catalogue.recommender_for(chosen)
    if not expected:
        assert recommender is None
        return
    assert recommender is not None
    found = recommender.search(recommender.encode([HISTORY]), 40, num_beams=40)
    assert set(found.items_BK[0].tolist()) - {-1} == expected
    assert catalogue.recommender_for(chosen) is recommender


def test_a_filter_sees_changed_fields_new_items_and_removals(catalogue: Catalogue, live_items: pl.DataFrame) -> None:
    western = Filter(columns=(("genre", ("western",)),))
    assert catalogue.recommender_for(western) is None
    changed = catalogue.change([ItemChange("103", {"genre": "western"}), ItemChange("104", {"genre": "western"})])
    changed = join(changed, "500", vector_of(live_items, 7), genre="comedy > western")
    changed = changed.change([ItemChange("104", {"genre": "western"}, removed=True)])
    recommender = changed.recommender_for(western)
    assert recommender is not None
    assert sorted(recommender.trie.item_of_rank.tolist()) == [3, 40]


# ---- what is stored meets a bundle -------------------------------------------------------------------------------


def test_stored_changes_give_the_same_catalogue_again(catalogue: Catalogue, live_items: pl.DataFrame) -> None:
    placed = catalogue.place(ItemChange("500", {"genre": "noir"}, vector_of(live_items, 7)))
    stored = [placed, ItemChange("103", removed=True), ItemChange("104", {"title": "New"})]
    expected = catalogue.change(stored)
    found, anew = catalogue.adopt(stored)
    assert anew == []
    assert found.items.equals(expected.items)
    assert found.table.content_hash == expected.table.content_hash
    assert everything(found) == everything(expected)
    assert catalogue.adopt([]) == (catalogue, [])


def test_under_another_bundle_items_that_joined_are_placed_anew(
    catalogue: Catalogue, make_live_bundle: Callable[..., Path], live_items: pl.DataFrame
) -> None:
    stored = [catalogue.place(ItemChange(str(500 + row), {}, vector_of(live_items, row))) for row in range(3)]
    gone = ItemChange("700", removed=True, new_id=stored[0].new_id, table_hash=stored[0].table_hash)
    others_own = ItemChange("800", {"title": "of another bundle"})
    quantizer = {"codes_per_level": [8, 4], "iterations": 5}
    other = Catalogue.of(Bundle.load(make_live_bundle(quantizer=quantizer)))
    found, anew = other.adopt([*stored, gone, others_own, ItemChange("103", removed=True)])
    assert [change.item_id for change in anew] == ["500", "501", "502"]
    assert all(change.table_hash == other.table.content_hash for change in anew)
    assert [found.find(item_id) for item_id in ("500", "502", "700", "800")] == [40, 42, None, None]
    assert found.table.codes_NL[40:, :2].tolist() == other.table.codes_NL[:3, :2].tolist()
    assert found.is_removed("103")
    assert other.adopt(anew)[0].table.content_hash == found.table.content_hash


def test_a_bundle_without_its_tokenizer_cannot_place_but_can_remove(make_live_bundle: Callable[..., Path]) -> None:
    bundle = Bundle.load(make_live_bundle(with_tokenizer=False))
    assert bundle.assigner is None
    catalogue = Catalogue.of(bundle)
    with pytest.raises(CannotPlaceError, match="without its tokenizer"):
        catalogue.place(ItemChange("500", vector=(1.0,) * 6))
    assert set(everything(catalogue.change([ItemChange("103", removed=True)]))) == set(range(40)) - {3}


# ---- the bundle's part -------------------------------------------------------------------------------------------


def test_the_tokenizer_part_is_under_the_manifest(live_bundle: Path) -> None:
    manifest = read_manifest(live_bundle, "bundle")
    parts = {name for name in manifest.files if name.startswith("tokenizer/")}
    assert parts == {"tokenizer/recipe.json", "tokenizer/codebooks.safetensors", "tokenizer/fusion.safetensors"}
    fitted = read_manifest(live_bundle.parent / "tokenizer", "tokenizer")
    assert manifest.inputs["tokenizer"] == fitted.content_hash


def test_the_tokenizer_of_another_table_is_refused(small_run: Any, live_bundle: Path, tmp_path: Path) -> None:
    parts = (small_run.model, small_run.table, small_run.data, small_run.results, small_run.config, {})
    with pytest.raises(ArtifactError, match="its ID table: found hash"):
        write_bundle(tmp_path / "bundle", *parts, tokenizer=live_bundle.parent / "tokenizer")
    assert not (tmp_path / "bundle").exists()


def test_codebooks_that_do_not_fit_the_table_are_refused(live_bundle: Path) -> None:
    table = SemanticIdTable.of_unique(np.array([[0, 0, 0]]), (6, 4, 2), ["a"])
    with pytest.raises(ArtifactError, match=r"found codebooks of \[6, 5\] codes under the policy 'suffix'"):
        Assigner.load(live_bundle / "tokenizer", table)
