from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import tokenizer.behaviour.tokens as tokens_module
from tokenizer.behaviour.tokens import NO_WORD, TEXT, item_tokens
from tokenizer.config import TokenizerSettings
from tokenizer.encoders import checkpoint_folder, load_encoder
from tokenizer.errors import ArtifactError, DataError
from tokenizer.settings import build_settings


def make(cache: Path | str = "", **text: Any) -> TokenizerSettings:
    group = {"columns": ["title"], "field_template": "{value}", "cache_folder": str(cache), **text}
    return build_settings(TokenizerSettings, {"text": group, "behaviour": {"weight": 1, "max_text_tokens": 8}}, "test")


TITLES = ["red nail polish", None, "steel hammer", "an unbelievably long title of many more words than are read"]
ITEMS = pl.DataFrame({"item_id": ["a", "b", "c", "d"], "title": TITLES})


def test_rows_of_a_batch(make_tokens: Any) -> None:
    tokens = make_tokens([2, 0, 3], width=4)
    text = tokens.kinds[TEXT]
    vectors, real = text.batch(np.array([2, 1, 0]))
    assert real.tolist() == [[True] * 3, [False] * 3, [True, True, False]]
    np.testing.assert_array_equal(vectors[0], text.vectors_TD[2:5].astype(np.float32))
    np.testing.assert_array_equal(vectors[2, :2], text.vectors_TD[:2].astype(np.float32))
    assert not vectors[~real].any()
    assert text.batch(np.array([1]))[1].tolist() == [[False]]
    assert tokens.known.tolist() == [True, False, True]
    assert text.words(2).tolist() == [103, 104]


def test_token_vectors_are_the_encoders_own_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make(tmp_path, max_share_without_text=0.5)
    text = item_tokens(ITEMS, settings, []).kinds[TEXT]
    assert text.counts_N.tolist() == [5, 0, 4, 8]  # with the marks at both ends, cut at 8
    model = load_encoder(checkpoint_folder("minilm"), "auto", 8)
    own = model.encode(["red nail polish"], output_value="token_embeddings")[0]
    np.testing.assert_allclose(text.batch(np.array([0]))[0][0], own.cpu(), atol=2e-3)  # float16
    assert model.tokenizer.convert_ids_to_tokens(text.words(0).tolist()) == ["red", "nail", "polish"]
    assert text.words_T[text.starts_N[0]] == NO_WORD
    assert isinstance(text.vectors_TD, np.memmap)
    monkeypatch.setattr(tokens_module, "_text_states", lambda *_: pytest.fail("encoded again"))
    again = item_tokens(ITEMS, settings, []).kinds[TEXT]
    np.testing.assert_array_equal(again.vectors_TD, text.vectors_TD)
    next(tmp_path.glob("*.tokens/vectors.f16")).write_bytes(b"cut short")
    with pytest.raises(ArtifactError, match="Delete it"):
        item_tokens(ITEMS, settings, [])


def test_without_a_cache_they_are_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    without = item_tokens(ITEMS.head(1), make(), []).kinds[TEXT]
    cached = item_tokens(ITEMS.head(1), make(tmp_path / "cache"), []).kinds[TEXT]
    np.testing.assert_array_equal(without.vectors_TD, cached.vectors_TD)
    np.testing.assert_array_equal(without.words_T, cached.words_T)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_killed_encoding_leaves_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> Any:
        yield 0, torch.zeros(2, 4).numpy(), np.zeros(2, dtype=np.int64)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokens_module, "_text_states", stop)
        with pytest.raises(KeyboardInterrupt):
            item_tokens(ITEMS.head(1), make(tmp_path), [])
    assert list(tmp_path.iterdir()) == []


def test_too_many_items_without_anything_to_read() -> None:
    with pytest.raises(DataError, match=r"1 of 4 have no text in the text columns, the first is row 1"):
        item_tokens(ITEMS, make(), [])
