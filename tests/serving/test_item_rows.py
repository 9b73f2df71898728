"""New rows in the model's tables: what was there stays as it was, and a new item is what its codes say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from onerec.bundle import Bundle, build_trie
from onerec.data.features import key_of, keys_of
from onerec.data.pathway_settings import CategorySpec, PathwaySettings, PathwaySpec
from onerec.decoding.recommender import OneRecRecommender
from onerec.errors import ArtifactError
from onerec.model.onerec import OneRec
from onerec.serving.item_rows import with_items
from tokenizer.table import SemanticIdTable

NEW_ML = np.array([[5, 4, 1], [0, 0, 0]], dtype=np.int32)
Make = Callable[..., Path]


def extended_by(bundle: Bundle, codes_ML: np.ndarray, model: OneRec | None = None) -> tuple[OneRec, SemanticIdTable]:
    """The bundle's model, or one made of it, with new items after those that it has, and the table of all."""
    table, start = bundle.table, (model or bundle.model).config.num_items
    codes_NL = np.concatenate([table.codes_NL, NEW_ML[: start - 40], codes_ML])
    ids = [*table.item_ids, *(str(500 + row) for row in range(len(codes_NL) - 40))]
    ranks_N = np.append(table.bucket_rank_N, np.ones(len(codes_NL) - 40, dtype=np.int32))
    full = SemanticIdTable(codes_NL, table.codes_per_level, ids, ranks_N)
    rows = pl.concat([bundle.items, *[bundle.items[:1]] * (len(codes_NL) - 40)])
    return with_items(model or bundle.model, full, rows, bundle.assigner), full


def test_old_items_are_read_as_before(live_bundle: Path) -> None:
    bundle = Bundle.load(live_bundle)
    extended, _ = extended_by(bundle, NEW_ML)
    items_BS, lengths_B = torch.tensor([[3, 39, 0], [7, 7, 0]]), torch.tensor([3, 2])
    before, after = bundle.model.encode(items_BS, lengths_B), extended.encode(items_BS, lengths_B)
    torch.testing.assert_close(after.states_BSD, before.states_BSD, rtol=0, atol=0)
    assert (bundle.model.config.num_items, extended.config.num_items) == (40, 42)
    assert bundle.model.encoder.code_rows_NL.shape == (40, 3)


def test_a_new_item_is_the_sum_of_its_codes_and_the_mean_of_the_own_vectors(live_bundle: Path) -> None:
    bundle = Bundle.load(live_bundle)
    extended, _ = extended_by(bundle, NEW_ML[1:], extended_by(bundle, NEW_ML[:1])[0])
    embedding = bundle.model.encoder.embedding
    first_K, second_K, third_K = embedding.codes.weight.split(bundle.model.config.codes_per_level)
    assert embedding.items is not None
    mean_D = embedding.items.weight.mean(dim=0)
    expected = torch.stack([first_K[5] + second_K[4] + third_K[1], first_K[0] + second_K[0] + third_K[0]]) + mean_D
    torch.testing.assert_close(extended.encoder.item_vectors()[40:], expected)


def test_all_but_the_tables_of_items_is_shared(live_bundle: Path) -> None:
    bundle = Bundle.load(live_bundle)
    extended, _ = extended_by(bundle, NEW_ML)
    of_bundle = bundle.model.state_dict(keep_vars=True)
    own = {name for name, tensor in extended.state_dict(keep_vars=True).items() if tensor is not of_bundle[name]}
    assert own == {"encoder.code_rows_NL", "encoder.embedding.items.weight"}


@pytest.mark.parametrize(
    "shape",
    [
        {"item_head_weight": 1.0},
        {"item_head_weight": 1.0, "id_head_width": 8},
        {"item_head_weight": 1.0, "prefix_vectors": True, "repeat_bias": True, "bos_reads_context": True},
    ],
)
def test_it_ranks_as_a_model_built_for_all_items_with_the_same_weights(make_live_bundle: Make, shape: Any) -> None:
    bundle = Bundle.load(make_live_bundle(shape=shape))
    bundle.recommender()  # the bundle's model has looked at its own table before
    extended, table = extended_by(bundle, NEW_ML)
    whole = OneRec(extended.config).eval()
    whole.load_state_dict(extended.state_dict())
    whole.set_codes(table.codes_NL, table.content_hash)
    histories = [np.array([3, 41, 40]), np.array([41])]
    recommenders = [OneRecRecommender(model, build_trie(table), 42, rescoring=1.0) for model in (whole, extended)]
    rankings = [recommender.recommend(histories, 42, exclude_seen=False) for recommender in recommenders]
    np.testing.assert_array_equal(rankings[0].items_BK, rankings[1].items_BK)
    np.testing.assert_array_equal(rankings[0].scores_BK, rankings[1].scores_BK)


def test_pieces_of_a_new_item_are_those_of_its_codes(make_live_bundle: Make) -> None:
    bundle = Bundle.load(make_live_bundle(pieces={"vocabulary_size": 60}))
    extended, table = extended_by(bundle, bundle.table.codes_NL[[7]])
    rows_NL = extended.encoder.embedding.piece_rows_NL
    torch.testing.assert_close(rows_NL[40], rows_NL[7])
    with pytest.raises(ArtifactError, match="reads pieces"):
        with_items(bundle.model, table, bundle.items, None)


def test_pathways_know_the_categories_of_new_and_changed_items(make_live_bundle: Make) -> None:
    settings = PathwaySettings.model_validate({"short_term": {"features": ["genre"]}})
    genre = CategorySpec(name="genre", num_own=0, num_shared=8)
    spec = PathwaySpec(settings=settings, categories=(genre,), vector_width=2)
    bundle = Bundle.load(make_live_bundle(shape={"pathways": spec.model_dump(mode="json")}))
    pathways = bundle.model.encoder.pathways
    assert pathways is not None
    pathways.item_keys_NF.copy_(torch.from_numpy(keys_of(bundle.items["genre"]).copy())[:, None])
    pathways.vectors_NV.copy_(torch.arange(80.0).view(40, 2))
    kin = bundle.table.codes_NL[:, 0] == bundle.table.codes_NL[7, 0]
    _, table = extended_by(bundle, bundle.table.codes_NL[[7]])
    rows = pl.concat([bundle.items, bundle.items[:1]]).with_columns(
        genre=pl.when(pl.int_range(pl.len()).is_in([3, 40])).then(pl.lit("western")).otherwise("genre")
    )
    after = with_items(bundle.model, table, rows, bundle.assigner).encoder.pathways
    assert after is not None
    before_N, after_N = pathways.item_keys_NF[:, 0], after.item_keys_NF[:, 0]
    assert after_N[[3, 40]].tolist() == [key_of("western")] * 2
    assert (before_N[3], after_N[2]) == (key_of("noir"), before_N[2])
    torch.testing.assert_close(after.vectors_NV[:40], pathways.vectors_NV)
    torch.testing.assert_close(after.vectors_NV[40], pathways.vectors_NV[torch.from_numpy(kin)].mean(dim=0))
