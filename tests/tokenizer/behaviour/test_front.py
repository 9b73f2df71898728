"""The front as part of a tokenizer: fitted, stored, and used for new items."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import tokenizer.fit as fit_module
from tokenizer.artifacts import read_manifest
from tokenizer.assignment import Assigner, assign_items, copy_assigner, load_tokenizer
from tokenizer.behaviour.front import BehaviourFront, FrontReport
from tokenizer.config import TokenizerSettings
from tokenizer.errors import ArtifactError, DataError
from tokenizer.fit import FRONT_NAME, fit_tokenizer
from tokenizer.report import Report, summarise
from tokenizer.sequences import Sequences
from tokenizer.settings import build_settings
from tokenizer.table import SemanticIdTable

KINDS = ["nail polish", "steel hammer", "hair brush", "garden hose", "lip balm", "desk lamp"]
COLOURS = ["red", "blue", "green", "black", "white", "golden", "silver", "pink"]
NUM_ITEMS = len(KINDS) * len(COLOURS)


@pytest.fixture(scope="module")
def titled() -> pl.DataFrame:
    """48 items: every kind in every colour."""
    titles = [f"{colour} {kind}" for colour in COLOURS for kind in KINDS]
    return pl.DataFrame({"item_id": [f"i{row}" for row in range(NUM_ITEMS)], "title": titles})


@pytest.fixture(scope="module")
def colour_users() -> Sequences:
    """Users who stay within a colour, of which the titles' first word tells, whatever the kind."""
    random = np.random.default_rng(1)
    rows = [user % 8 * 6 + random.permutation(6)[:5] for user in range(48)]
    return Sequences(np.arange(0, 241, 5), np.concatenate(rows).astype(np.int32))


@pytest.fixture(scope="module")
def make_front_settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TokenizerSettings]:
    cache = str(tmp_path_factory.mktemp("cache"))

    def make(**behaviour: Any) -> TokenizerSettings:
        training = {"steps": 60, "batch_size": 32, "caption_items": 8, "caption_words": 8, "learning_rate": 0.003}
        tree: dict[str, Any] = {
            "text": {"weight": 0, "columns": ["title"], "cache_folder": cache},
            "collaborative": {"weight": 0, "width": 6},
            "behaviour": {"weight": 1, "num_layers": 1, "width": 16, "training": training, **behaviour},
            "quantizer": {"codes_per_level": [8, 8], "iterations": 5},
            "report": {"max_bucket_share": 1},
        }
        return build_settings(TokenizerSettings, tree, "test")

    return make


@pytest.fixture(scope="module")
def fitted(
    titled: pl.DataFrame,
    colour_users: Sequences,
    make_front_settings: Callable[..., TokenizerSettings],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "tokenizer"
    fit_tokenizer(titled, colour_users, make_front_settings(), folder, {}, "cfg")
    return folder


def test_items_met_together_share_their_first_code(fitted: Path) -> None:
    vectors_ND = np.load(fitted / "vectors.npy")
    assert vectors_ND.shape == (NUM_ITEMS, 4 * 16)
    codes = SemanticIdTable.load(fitted).codes_NL[:, 0].reshape(len(COLOURS), len(KINDS))
    same_colour = (codes[:, :, None] == codes[:, None, :]).mean()
    same_kind = (codes[:, None, :] == codes[None, :, :]).mean()
    assert same_colour > 0.8 > 0.4 > same_kind  # by text alone the kinds would lie together


def test_the_artefact_holds_the_front_and_its_report(fitted: Path, titled: pl.DataFrame) -> None:
    assert FRONT_NAME in read_manifest(fitted, "tokenizer").files
    report = Report.model_validate_json((fitted / "report.json").read_text())
    front = report.behaviour
    assert isinstance(front, FrontReport)
    assert (front.items_read, front.texts_at_limit, front.swing_left_out) == (NUM_ITEMS, 0, 0)
    assert front.user_pairs == 48 * 4
    assert 0 < front.swing_pairs <= 5 * NUM_ITEMS
    assert front.losses[-1].step == 60
    assert f"{front.user_pairs} user and {front.swing_pairs} Swing pairs" in summarise(report)
    assert "Behaviour-aware vectors" in (fitted / "report.html").read_text()


def test_new_items_pass_through_the_same_qformer(fitted: Path, titled: pl.DataFrame, tmp_path: Path) -> None:
    twins = titled.with_columns(pl.concat_str(pl.lit("new "), "item_id").alias("item_id"))
    assign_items(fitted, twins, tmp_path / "more")
    vectors_ND = np.load(tmp_path / "more/vectors.npy")
    np.testing.assert_allclose(vectors_ND[NUM_ITEMS:], vectors_ND[:NUM_ITEMS], atol=1e-3)
    assert (tmp_path / "more" / FRONT_NAME).read_bytes() == (fitted / FRONT_NAME).read_bytes()
    assert load_tokenizer(tmp_path / "more").report.behaviour == load_tokenizer(fitted).report.behaviour


def test_an_endpoint_assigns_one_item_by_its_text(fitted: Path, titled: pl.DataFrame, tmp_path: Path) -> None:
    table = SemanticIdTable.load(fitted)
    copy_assigner(fitted, tmp_path / "bundle/tokenizer")
    assigner = Assigner.load(tmp_path / "bundle/tokenizer", table)
    assert assigner.item_text_columns == ["title"]
    for row in (0, 17, 40):
        new = assigner.assign({"title": titled["title"][row]}, None, table)
        assert new.codes[:2] == tuple(table.codes_NL[row, :2])
    with pytest.raises(DataError, match="expected text in title, found neither"):
        assigner.assign({"title": " "}, None, table)


def test_equal_inputs_take_up_the_finished_training(
    titled: pl.DataFrame,
    colour_users: Sequences,
    make_front_settings: Callable[..., TokenizerSettings],
    fitted: Path,
    tmp_path: Path,
) -> None:
    fit_tokenizer(titled, colour_users, make_front_settings(), tmp_path / "again", {}, "cfg")
    assert read_manifest(tmp_path / "again", "tokenizer").files == read_manifest(fitted, "tokenizer").files


def test_without_weight_there_is_no_front(
    titled: pl.DataFrame, colour_users: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "fit_front", lambda *_: pytest.fail("trained"))
    tree = {"text": {"weight": 0}, "collaborative": {"width": 6}, "quantizer": {"codes_per_level": [4, 4]}}
    settings = build_settings(TokenizerSettings, tree | {"report": {"max_bucket_share": 1}}, "test")
    fit_tokenizer(titled, colour_users, settings, tmp_path / "plain", {}, "cfg")
    assert FRONT_NAME not in read_manifest(tmp_path / "plain", "tokenizer").files
    report = json.loads((tmp_path / "plain/report.json").read_text())
    assert report["behaviour"] is None
    del report["behaviour"]  # as tokenizers stored before have it
    assert Report.model_validate(report).behaviour is None


def test_damaged_and_foreign(fitted: Path, make_tokens: Any, tmp_path: Path) -> None:
    front = BehaviourFront.load(fitted / FRONT_NAME)
    with pytest.raises(DataError, match=r"found widths \{'text': 6\}, expected \{'text': 384\}"):
        front.vectors(make_tokens([2, 3]))
    (tmp_path / "cut").write_bytes((fitted / FRONT_NAME).read_bytes()[:-5])
    for path in (tmp_path / "cut", tmp_path / "none"):
        with pytest.raises(ArtifactError, match="not a readable QFormer"):
            BehaviourFront.load(path)
