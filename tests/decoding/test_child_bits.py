"""Children found by bits and ranks, against a search of every row."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from onerec.decoding.child_bits import ChildBits, num_bits, sum_bits
from onerec.decoding.trie import Trie


@given(st.integers(0, 2**16), st.sampled_from([3, 31, 32, 33, 300, 2048, 8192]), st.floats(0.05, 1.0))
def test_every_code_after_every_node_is_found_or_not(seed: int, num_codes: int, share: float) -> None:
    """The row of one node in the midst is full, and one may be empty."""
    follows_NK = np.random.default_rng(seed).random((5, num_codes)) < share
    follows_NK[1 + seed % 2] = True
    follows_NK[4 - seed % 3] &= seed % 5 > 0
    offsets = torch.from_numpy(np.append(0, follows_NK.sum(axis=1).cumsum()).astype(np.int32))
    codes = torch.from_numpy(np.nonzero(follows_NK)[1].astype(np.int16))
    bits = ChildBits.of(offsets, codes, num_codes)
    nodes = torch.arange(5)[:, None].expand(-1, num_codes)
    children, present = bits.find(nodes, torch.arange(num_codes).expand(5, -1))
    assert present.tolist() == follows_NK.tolist()
    expected = follows_NK.ravel().cumsum() - follows_NK.ravel()
    assert children.flatten().tolist() == expected.tolist()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1))
def test_bits_are_counted_alike_with_and_without_numpy(numbers: list[int]) -> None:
    expected = [number.bit_count() for number in numbers]
    assert num_bits(torch.tensor(numbers)).tolist() == expected
    assert sum_bits(torch.tensor(numbers)).tolist() == expected


def test_the_number_of_a_first_child_may_be_any_of_31_bits() -> None:
    """A billion children stand before those of the second node."""
    bits = ChildBits(torch.tensor([0, (2**31 - 9 << 32) + 0b1011 + (1 << 31)]), 1)
    found, present = bits.find(torch.ones(4, dtype=torch.long), torch.tensor([0, 2, 3, 31]))
    assert found.tolist() == [2**31 - 9, 2**31 - 7, 2**31 - 7, 2**31 - 6]
    assert present.tolist() == [True, False, True, True]


def test_a_tree_has_bits_where_many_codes_follow_and_each_stands_for_one_node() -> None:
    few = Trie.from_table(np.stack([np.arange(64), np.arange(64)], axis=1), (64, 64))
    many = Trie.from_table(np.stack(np.unravel_index(np.arange(0, 4096, 2), (64, 64)), axis=1), (64, 64))
    bucket = Trie.from_table(np.array([[0, 1], [0, 1], [0, 0]]), (1, 2), np.array([1, 0, 0]))
    assert [bits is not None for trie in (few, many, bucket) for bits in trie.child_bits] == [
        *(True, False),
        *(True, True),
        *(True, False),
    ]
    found = many.find_children(1, torch.tensor([3, 3]), torch.tensor([62, 63]))
    assert [answer.tolist() for answer in found] == [[127, 128], [True, False]]


def test_a_changed_tree_is_searched_without_bits() -> None:
    trie = Trie.from_table(np.arange(8)[:, None], (16,)).add(np.array([[9]]))
    nodes, present = trie.find_children(0, torch.zeros(2, dtype=torch.long), torch.tensor([9, 8]))
    assert nodes.tolist() == [8, 8]
    assert present.tolist() == [True, False]
