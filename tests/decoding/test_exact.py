"""Exact search equals exhaustive scoring, where narrow beams do not."""

import numpy as np
import pytest
import torch
from hypothesis import given

from onerec.decoding.beam import beam_search
from onerec.decoding.exact import exact_search
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError
from tests.decoding.test_beam import (
    SIZES,
    TableModel,
    make_catalogue,
    make_histories,
    make_model,
    score_all_items,
    searches,
)


def test_the_garden_path_that_a_narrow_beam_takes() -> None:
    """Code 0 is likelier at first, but everything below code 1 is likelier than anything below code 0."""
    codes_NL = np.array([[0, 0], [0, 1], [1, 0]])
    trie = Trie.from_table(codes_NL, (2, 2))
    rows = {(): [0.6, 0.4], (0,): [0.5, 0.5], (1,): [1.0, 0.0]}
    model = TableModel(trie, [0], lambda row, prefix, size: torch.tensor(rows[prefix]).log())
    assert beam_search(model, model, trie, 1, 1).items_BK.tolist() == [[0]]
    result = exact_search(model, model, trie, 1, 1)
    assert result.items_BK.tolist() == [[2]]
    assert result.scores_BK.item() == pytest.approx(np.log(0.4))
    assert result.num_expansions_B.tolist() == [2 + 3]  # root and code 0; root, code 0 and code 1


@given(searches())
def test_equals_the_widest_beam(search: tuple[np.ndarray, Trie, int, int, list[np.ndarray]]) -> None:
    _, trie, num_beams, k, excluded = search
    model = TableModel(trie, list(range(len(excluded))))
    found = exact_search(model, model, trie, num_beams, k, excluded)
    expected = beam_search(model, model, trie, max(k, trie.num_items), k, excluded)
    torch.testing.assert_close(found.items_BK, expected.items_BK)
    torch.testing.assert_close(found.scores_BK, expected.scores_BK)


def test_equals_exhaustive_scoring_by_the_model() -> None:
    codes_NL = make_catalogue(50)
    model = make_model(codes_NL)
    items_BS, lengths_B = make_histories(50, (8, 1, 5))
    trie = Trie.from_table(codes_NL, SIZES)
    found = exact_search(model, model.encode(items_BS, lengths_B), trie, num_beams=3, k=3)
    expected = score_all_items(model, codes_NL, items_BS, lengths_B).sort(dim=1, descending=True)
    torch.testing.assert_close(found.items_BK, expected.indices[:, :3])
    torch.testing.assert_close(found.scores_BK, expected.values[:, :3])
    assert (found.num_expansions_B < 2 * (1 + trie.num_nodes(0) + trie.num_nodes(1))).all()


def test_an_undecided_model_is_refused_rather_than_cut_short() -> None:
    codes_NL = make_catalogue(50)
    trie = Trie.from_table(codes_NL, SIZES)
    model = TableModel(trie, [0], lambda row, prefix, size: torch.full((size,), 1 / size).log())
    with pytest.raises(ConfigError, match="more than 2 prefixes"):
        exact_search(model, model, trie, num_beams=1, k=1, max_prefixes=2)
