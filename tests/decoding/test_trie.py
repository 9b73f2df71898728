import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onerec.decoding.trie import Trie
from onerec.errors import ConfigError, DataError
from tests.decoding.catalogues import CODES_NL, SIZES, tables


def children_of(trie: Trie, level: int, node: int) -> tuple[list[int], list[int]]:
    candidates = trie.children(level, torch.tensor([[node]]), torch.tensor([[True]]))
    assert candidates.present_BC.all()
    return candidates.nodes_BC[0].tolist(), candidates.codes_BC[0].tolist()


def test_nodes_are_the_distinct_prefixes_in_code_order() -> None:
    trie = Trie.from_table(CODES_NL, SIZES)
    assert trie.item_of_rank.tolist() == [2, 5, 1, 4, 0, 3]
    assert [trie.num_nodes(level) for level in range(3)] == [2, 3, 6]
    assert children_of(trie, 0, 0) == ([0, 1], [0, 2])
    assert children_of(trie, 1, 0) == ([0, 1], [1, 3])
    assert children_of(trie, 1, 1) == ([2], [0])
    assert children_of(trie, 2, 2) == ([3, 4, 5], [1, 2, 3])


def test_children_of_a_batch_are_packed_by_request_and_skip_dead_beams() -> None:
    trie = Trie.from_table(CODES_NL, SIZES)
    nodes_BW = torch.tensor([[2, 0, 1], [1, 0, 2]])
    alive_BW = torch.tensor([[True, False, True], [True, False, False]])
    candidates = trie.children(2, nodes_BW, alive_BW)
    assert candidates.present_BC.tolist() == [[True] * 4, [True, False, False, False]]
    assert candidates.slots_BC[0].tolist() == [0, 0, 0, 2]
    assert candidates.nodes_BC[0].tolist() == [3, 4, 5, 2]
    assert candidates.codes_BC[0].tolist() == [1, 2, 3, 0]
    assert (candidates.slots_BC[1, 0], candidates.nodes_BC[1, 0], candidates.codes_BC[1, 0]) == (0, 2, 0)


@given(tables())
def test_every_path_is_an_item_and_every_item_a_path(table: tuple[np.ndarray, tuple[int, ...], np.ndarray]) -> None:
    codes_NL, sizes, ranks_N = table
    trie = Trie.from_table(codes_NL, sizes, ranks_N)
    paths = [(0, ())]
    for level in range(trie.num_levels):
        paths = [
            (node, (*codes, code))
            for above, codes in paths
            for node, code in zip(*children_of(trie, level, above), strict=True)
        ]
        assert [node for node, _ in paths] == list(range(trie.num_nodes(level)))
    by_codes_then_rank = sorted(range(len(codes_NL)), key=lambda item: (*codes_NL[item], ranks_N[item]))
    assert trie.item_of_rank.tolist() == by_codes_then_rank
    assert [codes for _, codes in paths] == [tuple(codes_NL[item]) for item in by_codes_then_rank]
    assert trie.rank_of_item[trie.item_of_rank].tolist() == list(range(trie.num_items))


def test_a_bucket_keeps_its_order() -> None:
    codes_NL = np.array([[1, 1], [0, 2], [1, 1], [1, 1]])
    trie = Trie.from_table(codes_NL, (2, 3), bucket_rank_N=np.array([2, 0, 0, 1]))
    assert trie.item_of_rank.tolist() == [1, 2, 3, 0]
    assert children_of(trie, 1, 1) == ([1, 2, 3], [1, 1, 1])


@pytest.mark.parametrize("size", [256, 257, 2**15, 2**15 + 1])
def test_the_largest_code_of_a_level_survives_its_storage(size: int) -> None:
    trie = Trie.from_table(np.array([[size - 1, 0], [0, size - 1]]), (size, size))
    assert children_of(trie, 0, 0)[1] == [0, size - 1]
    assert children_of(trie, 1, 0)[1] == [size - 1]


@pytest.mark.parametrize("num_items", [10**4, 10**5, 10**6])
def test_items_of_three_levels_take_at_most_16_bytes_each_whatever_is_made_for_speed(num_items: int) -> None:
    codes_NL = np.unique(np.random.default_rng(0).integers(0, 2048, (num_items, 3)), axis=0)
    trie = Trie.from_table(codes_NL, (2048,) * 3)
    without_bits = trie.num_bytes
    num_bytes_of_bits = sum(bits.nbytes for bits in trie.child_bits if bits is not None)
    assert trie.num_bytes == without_bits + num_bytes_of_bits > without_bits
    assert trie.num_bytes <= 16 * trie.num_items


def test_memory_is_that_of_every_array_the_tree_holds() -> None:
    trie = Trie.from_table(CODES_NL, SIZES).remove(np.array([1])).add(np.array([[2, 3, 3]]))
    assert any(bits is not None for bits in trie.child_bits)
    seen: dict[int, int] = {}

    def visit(value: object) -> None:
        if isinstance(value, torch.Tensor | np.ndarray):
            seen[value.data_ptr() if isinstance(value, torch.Tensor) else value.ctypes.data] = value.nbytes
        elif isinstance(value, tuple):
            for part in value:
                visit(part)
        elif hasattr(value, "__dict__"):
            visit(tuple(vars(value).values()))

    visit(trie)
    assert trie.num_bytes == sum(seen.values())


def test_moving_keeps_every_tensor() -> None:
    trie = Trie.from_table(CODES_NL, SIZES)
    moved = trie.to("meta")
    offsets = [tensor for offsets in moved.child_offsets for tensor in (offsets.bases, offsets.steps)]
    tensors = itertools.chain(offsets, moved.child_codes, [moved.item_of_rank, moved.rank_of_item])
    assert all(tensor.is_meta for tensor in tensors)
    assert moved.codes_per_level == SIZES


@pytest.mark.parametrize(
    ("codes_NL", "sizes", "ranks_N", "message"),
    [
        (np.zeros((0, 2), int), (2, 2), None, "at least one item"),
        (np.zeros((2, 3), int), (2, 2), None, r"found shape \(2, 3\)"),
        (np.zeros((2, 2)), (2, 2), None, "float64"),
        (np.array([[0, 2], [0, 1]]), (2, 2), None, "item 0, level 1, found 2, expected 0 to 1"),
        (np.array([[0, 0], [-1, 1]]), (2, 2), None, "item 1, level 0, found -1"),
        (np.array([[0, 1], [1, 1], [0, 1]]), (2, 2), None, r"1 items share .* items 0 and 2, codes \[0, 1\]"),
        (np.array([[0, 1], [0, 1]]), (2, 2), np.array([1, 1]), "share codes and bucket rank"),
        (np.array([[0, 1], [0, 0]]), (2, 2), np.array([0]), r"found shape \(1,\), expected \(2,\)"),
    ],
)
def test_a_broken_table_is_refused(
    codes_NL: np.ndarray, sizes: tuple[int, ...], ranks_N: np.ndarray | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Trie.from_table(codes_NL, sizes, ranks_N)


@pytest.mark.parametrize("sizes", [(), (3, 0)])
def test_levels_without_codes_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="at least one level of at least one code"):
        Trie.from_table(np.zeros((1, len(sizes)), int), sizes)


@given(tables(), st.data())
def test_a_restricted_tree_is_the_tree_of_what_is_allowed(
    table: tuple[np.ndarray, tuple[int, ...], np.ndarray], data: st.DataObject
) -> None:
    codes_NL, sizes, ranks_N = table
    some = st.lists(st.booleans(), min_size=len(codes_NL), max_size=len(codes_NL))
    allowed_N, kept_N = (np.array(data.draw(some.filter(any))) for _ in range(2))
    kept_N |= allowed_N
    restricted = Trie.from_table(codes_NL, sizes, ranks_N).restrict(kept_N).restrict(allowed_N)
    items_M = np.flatnonzero(allowed_N)
    expected = Trie.from_table(codes_NL[items_M], sizes, ranks_N[items_M])
    for found_offsets, expected_offsets in zip(restricted.child_offsets, expected.child_offsets, strict=True):
        torch.testing.assert_close(found_offsets.plain(), expected_offsets.plain())
        assert found_offsets.steps.dtype == expected_offsets.steps.dtype
    for found_of_level, expected_of_level in zip(restricted.child_codes, expected.child_codes, strict=True):
        torch.testing.assert_close(found_of_level, expected_of_level)
    assert restricted.item_of_rank.tolist() == items_M[expected.item_of_rank.numpy()].tolist()
    assert restricted.rank_of_item[restricted.item_of_rank].tolist() == list(range(len(items_M)))
    assert (restricted.num_items, restricted.num_leaves) == (len(codes_NL), len(items_M))
    assert (restricted.rank_of_item[~torch.from_numpy(allowed_N)] == -1).all()


@pytest.mark.parametrize("allowed_N", [np.zeros(6, bool), np.ones(5, bool), np.ones(6, int)])
def test_a_restriction_to_nothing_or_of_another_catalogue_is_refused(allowed_N: np.ndarray) -> None:
    with pytest.raises(DataError, match="allowed items: found"):
        Trie.from_table(CODES_NL, SIZES).restrict(allowed_N)
