"""The wish is kept; "auto" follows the device; a bundle decodes as the config of its run says."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch

from onerec.bundle import Bundle, build_trie
from onerec.config import DecodingSettings
from onerec.decoding.recommender import OneRecRecommender
from onerec.model.precision import choose_precision
from onerec.serving.item_rows import with_items


@pytest.mark.parametrize(
    ("amx", "avx512", "expected"),
    [(True, True, "bfloat16"), (False, True, "bfloat16"), (True, False, "bfloat16"), (False, False, "float32")],
)
def test_auto_follows_the_cpu(monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx, "avx512_bf16": avx512})
    assert choose_precision("auto") == expected
    assert choose_precision("float32") == "float32"
    assert choose_precision("bfloat16") == "bfloat16"


def test_auto_without_a_word_on_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert choose_precision("auto") == "float32"


def test_a_bundle_recommends_in_the_precision_of_its_config(small_run: Any, tmp_path: Path) -> None:
    settings = DecodingSettings(num_beams=40, precision="int8")
    run = dataclasses.replace(small_run, config=small_run.config.model_copy(update={"decoding": settings}))
    bundle = Bundle.load(run.write_bundle(tmp_path / "bundle"))
    recommender = bundle.recommender()
    direct = OneRecRecommender(small_run.model, build_trie(small_run.table), 40, "int8")
    plain = OneRecRecommender(small_run.model, build_trie(small_run.table), 40)
    histories = [np.array([3, 1, 4]), np.array([], dtype=np.int32), np.arange(20)]
    found, expected, exact = (each.recommend(histories, 10, True) for each in (recommender, direct, plain))
    np.testing.assert_array_equal(found.items_BK, expected.items_BK)
    np.testing.assert_array_equal(found.scores_BK, expected.scores_BK)
    assert (found.scores_BK != exact.scores_BK).any()
    proved, _ = recommender.search_exactly(recommender.encode(histories), 10, histories)
    np.testing.assert_allclose(proved.scores_BK, found.scores_BK, atol=0.05)


def test_a_catalogue_that_changes_shares_the_weights_of_eight_bits(small_run: Any, small_bundle: Path) -> None:
    coarse = small_run.model.for_decoding("int8")
    extended = with_items(coarse, small_run.table, Bundle.load(small_bundle).items, None)
    for stack, same in zip(extended.stacks(), coarse.stacks(), strict=True):
        assert all(one is other for one, other in zip(stack.parameters(), same.parameters(), strict=True))


def test_a_precision_that_nobody_knows_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match=r"precision\n.*'float32', 'bfloat16', 'int8' or 'float8'"):
        DecodingSettings(precision="int4")
