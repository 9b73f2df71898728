"""Rows of new items: among their kin by hand, old rows untouched, and no model over codes that have changed."""

import numpy as np
import pytest
import torch

from onerec.errors import ArtifactError
from onerec.model.configuration import OneRecConfig
from onerec.model.new_items import kin_means, with_new_items
from onerec.model.onerec import OneRec
from tokenizer.table import SemanticIdTable

OLD_CODES_NL = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [2, 1, 1]], dtype=np.int32)
NEW_CODES_ML = np.array([[0, 0, 2], [0, 2, 0], [1, 0, 0], [2, 1, 0]], dtype=np.int32)
SIZES = (3, 3, 3)


def table_of(codes_NL: np.ndarray) -> SemanticIdTable:
    return SemanticIdTable.of_unique(codes_NL, SIZES, [f"item-{item}" for item in range(len(codes_NL))])


def small_model(**options: int) -> OneRec:
    torch.manual_seed(0)
    shape = {"d_model": 8, "num_heads": 2, "d_ff": 16, "max_history_items": 4}
    model = OneRec(OneRecConfig(list(SIZES), len(OLD_CODES_NL), **shape, **options)).eval()
    model.set_codes(OLD_CODES_NL, table_of(OLD_CODES_NL).content_hash)
    return model


def test_means_of_the_longest_shared_prefix_by_hand() -> None:
    rows_OE = torch.tensor([[1.0, 0.0], [3.0, 0.0], [8.0, 4.0], [0.0, 8.0]])
    expected = [
        [2.0, 0.0],  # items 0 and 1 share two codes
        [4.0, 4 / 3],  # nobody shares two, items 0, 1 and 2 share the first
        [3.0, 3.0],  # nobody shares the first: all
        [0.0, 8.0],  # item 3 shares two
    ]
    torch.testing.assert_close(kin_means(rows_OE, OLD_CODES_NL, NEW_CODES_ML), torch.tensor(expected))


def test_a_grown_model_is_the_old_one_for_old_items_and_knows_the_new() -> None:
    model, table = small_model(), table_of(np.concatenate([OLD_CODES_NL, NEW_CODES_ML]))
    grown = with_new_items(model, table)
    assert grown.config.num_items == 8
    assert grown.config.table_hash == table.content_hash
    assert not grown.training
    own, rows = (each.encoder.embedding.items.weight for each in (model, grown))
    torch.testing.assert_close(rows[:4], own, rtol=0, atol=0)
    torch.testing.assert_close(rows[4], (own[0] + own[1]) / 2)
    np.testing.assert_array_equal(grown.codes_of(torch.arange(8)).numpy(), table.codes_NL)
    others = {
        name: value for name, value in grown.state_dict().items() if value.shape == model.state_dict()[name].shape
    }
    assert len(others) == len(model.state_dict()) - 2
    for name, value in others.items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=0)
    history, lengths = torch.tensor([[3, 1]]), torch.tensor([2])
    torch.testing.assert_close(grown.encoder.encode(history, lengths), model.encoder.encode(history, lengths))


def test_without_new_items_it_is_the_model_itself() -> None:
    model = small_model()
    assert with_new_items(model, table_of(OLD_CODES_NL)) is model


def test_a_table_whose_old_codes_have_changed_is_refused() -> None:
    other = table_of(np.concatenate([OLD_CODES_NL[::-1], NEW_CODES_ML]))
    with pytest.raises(ArtifactError, match=f"{other.content_hash}.*other codes than those of the 4 items"):
        with_new_items(small_model(), other)


def test_a_model_that_reads_pieces_asks_for_them() -> None:
    with pytest.raises(ArtifactError, match="reads pieces"):
        with_new_items(small_model(num_pieces=12), table_of(np.concatenate([OLD_CODES_NL, NEW_CODES_ML])))
