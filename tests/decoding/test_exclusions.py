"""What is excluded closes the nodes above it, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onerec.decoding.exclusions import Exclusions
from onerec.decoding.trie import Trie
from onerec.errors import DataError
from tests.decoding.catalogues import CODES_NL, SIZES, tables


@given(tables(), st.data())
def test_a_node_is_dead_exactly_when_all_its_items_are_excluded(
    table: tuple[np.ndarray, tuple[int, ...], np.ndarray], data: st.DataObject
) -> None:
    codes_NL, sizes, ranks_N = table
    trie = Trie.from_table(codes_NL, sizes, ranks_N)
    subsets = st.lists(st.integers(0, len(codes_NL) - 1), max_size=2 * len(codes_NL))
    excluded = [np.array(data.draw(subsets), dtype=np.int64) for _ in range(3)]
    exclusions = Exclusions(trie, excluded)
    assert exclusions.num_excluded_B.tolist() == [len(set(items.tolist())) for items in excluded]
    for level in range(trie.num_levels):
        nodes_BC = torch.arange(trie.num_nodes(level)).expand(3, -1).contiguous()
        found = exclusions.contains(level, nodes_BC)
        for request, items in enumerate(excluded):
            allowed = np.delete(codes_NL, items, axis=0)
            prefixes = sorted({tuple(row) for row in codes_NL[:, : level + 1]})
            if level == trie.num_levels - 1:
                expected = np.isin(trie.item_of_rank, items).tolist()
            else:
                living = {tuple(row) for row in allowed[:, : level + 1]}
                expected = [prefix not in living for prefix in prefixes]
            assert (found[request].tolist() if found is not None else [False] * len(expected)) == expected


def test_excluding_an_item_that_is_not_in_the_tree_changes_nothing() -> None:
    trie = Trie.from_table(CODES_NL, SIZES).restrict(np.array([False, True, True, True, True, True]))
    both, one = Exclusions(trie, [np.array([0, 4, 3])]), Exclusions(trie, [np.array([4, 3])])
    assert both.num_excluded_B.tolist() == one.num_excluded_B.tolist() == [3]  # item 0 is out of reach in both
    for level in range(3):
        nodes_BC = torch.arange(trie.num_nodes(level))[None]
        found, expected = both.contains(level, nodes_BC), one.contains(level, nodes_BC)
        assert found is not None
        assert expected is not None
        assert found.tolist() == expected.tolist()
    everything = Exclusions(trie, [np.arange(1, 6)])
    assert everything.num_excluded_B.tolist() == [6]


@pytest.mark.parametrize("item", [-1, 6])
def test_excluding_an_unknown_item_is_refused(item: int) -> None:
    with pytest.raises(DataError, match=f"first: {item}\\), expected 0 to 5"):
        Exclusions(Trie.from_table(CODES_NL, SIZES), [np.array([0]), np.array([item])])
