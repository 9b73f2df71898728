"""A trie that items join and leave is the trie that would have been built of them, and no tree changes itself."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onerec.decoding.exclusions import Exclusions
from onerec.decoding.trie import Trie
from onerec.errors import DataError

# In code order: 010 is item 2, 012 item 5, 030 item 1, 201 item 4, 202 item 0, 203 item 3.
CODES_NL = np.array([[2, 0, 2], [0, 3, 0], [0, 1, 0], [2, 0, 3], [2, 0, 1], [0, 1, 2]])
SIZES = (3, 4, 4)
BEHIND = 1000  # bucket ranks of added items start here


@dataclass(frozen=True)
class Catalogue:
    """What a trie should hold: all items that ever were, and which of them are there."""

    codes_NL: np.ndarray
    ranks_N: np.ndarray
    present_N: np.ndarray

    def rebuilt(self, sizes: tuple[int, ...]) -> Trie:
        return Trie.from_table(self.codes_NL, sizes, self.ranks_N).restrict(self.present_N)


def paths_of(trie: Trie) -> list[tuple[tuple[int, ...], int]]:
    """Codes and item of every leaf, by walking down from the root."""
    paths: list[tuple[tuple[int, ...], int]] = [((), 0)]
    for level in range(trie.num_levels):
        nodes_1W = torch.tensor([[node for _, node in paths]])
        found = trie.children(level, nodes_1W, torch.ones_like(nodes_1W, dtype=torch.bool))
        assert found.nodes_BC[found.present_BC].diff().gt(0).all()  # in code order
        expected = trie.parents(level, found.nodes_BC)[found.present_BC].tolist()
        children = zip(
            *(x[found.present_BC].tolist() for x in (found.slots_BC, found.codes_BC, found.nodes_BC)), strict=True
        )
        grown = [((*paths[slot][0], code), node) for slot, code, node in children]
        assert expected == [paths[slot][1] for slot in found.slots_BC[found.present_BC].tolist()]
        assert trie.num_children(level, nodes_1W)[0].tolist() == [
            sum(codes[:-1] == above for codes, _ in grown) for above, _ in paths
        ]
        paths = grown
    items = trie.items_of(torch.tensor([node for _, node in paths])).tolist()
    assert trie.ranks_of(torch.tensor(items)).tolist() == [node for _, node in paths]
    return [(codes, item) for (codes, _), item in zip(paths, items, strict=True)]


def same(found: Trie, expected: Catalogue, sizes: tuple[int, ...]) -> None:
    rebuilt = expected.rebuilt(sizes)
    assert paths_of(found) == paths_of(rebuilt)
    assert (found.num_items, found.num_leaves) == (rebuilt.num_items, rebuilt.num_leaves)
    absent = torch.from_numpy(np.flatnonzero(~expected.present_N))
    assert (found.ranks_of(absent) == -1).all()
    compact = found.compact()
    for level in range(compact.num_levels):
        torch.testing.assert_close(compact.child_offsets[level].plain(), rebuilt.child_offsets[level].plain())
        torch.testing.assert_close(compact.child_codes[level], rebuilt.child_codes[level])
    torch.testing.assert_close(compact.item_of_rank, rebuilt.item_of_rank)
    torch.testing.assert_close(compact.rank_of_item, rebuilt.rank_of_item)


def dead_prefixes(trie: Trie, excluded: list[np.ndarray]) -> list[set[tuple[int, ...]]]:
    """For each request the prefixes, items among them, that may not be entered."""
    exclusions = Exclusions(trie, excluded)
    dead: list[set[tuple[int, ...]]] = [set() for _ in excluded]
    paths: list[tuple[tuple[int, ...], int]] = [((), 0)]
    for level in range(trie.num_levels):
        nodes_BW = torch.tensor([[node for _, node in paths]]).expand(len(excluded), -1)
        found = trie.children(level, nodes_BW, torch.ones_like(nodes_BW, dtype=torch.bool))
        is_dead = exclusions.contains(level, found.nodes_BC)
        kept = found.present_BC[0]
        slots, codes, nodes = (x[0][kept].tolist() for x in (found.slots_BC, found.codes_BC, found.nodes_BC))
        paths = [((*paths[slot][0], code), node) for slot, code, node in zip(slots, codes, nodes, strict=True)]
        if is_dead is None:
            continue
        items = trie.items_of(torch.tensor(nodes)).tolist() if level == trie.num_levels - 1 else [0] * len(nodes)
        for request, row in enumerate(is_dead[:, kept].tolist()):
            dead[request] |= {(*path, item) for (path, _), item, hit in zip(paths, items, row, strict=True) if hit}
    return dead


@st.composite
def histories(draw: st.DrawFn) -> tuple[tuple[int, ...], np.ndarray, np.ndarray, list[tuple[str, list[int]]]]:
    """Levels, a first catalogue, and what happens to it, as numbers to be read modulo what there is."""
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    number = st.integers(0, 2**20)
    first = draw(st.lists(st.tuples(*[number] * len(sizes)), min_size=1, max_size=12))
    kinds = st.sampled_from(["add", "remove", "restore"])
    steps = draw(st.lists(st.tuples(kinds, st.lists(number, min_size=1, max_size=6)), max_size=6))
    codes_NL = np.array(first) % np.array(sizes)
    return sizes, codes_NL, np.random.default_rng(len(first)).permutation(len(first)), steps


def apply(trie: Trie, now: Catalogue, kind: str, numbers: list[int]) -> tuple[Trie, Catalogue]:
    """One step for both; one that does not fit changes nothing."""
    present_N = now.present_N.copy()
    if kind == "add":
        codes_ML = np.array(
            [np.unravel_index(number % int(np.prod(trie.codes_per_level)), trie.codes_per_level) for number in numbers]
        )
        ranks_M = BEHIND + len(now.codes_NL) + np.arange(len(codes_ML))
        after = Catalogue(
            np.concatenate([now.codes_NL, codes_ML]),
            np.concatenate([now.ranks_N, ranks_M]),
            np.append(present_N, np.ones(len(codes_ML), dtype=bool)),
        )
        return trie.add(codes_ML, ranks_M), after
    pool = np.flatnonzero(present_N if kind == "remove" else ~present_N)
    items = np.unique(pool[np.array(numbers) % len(pool)]) if len(pool) else pool
    if len(items) == 0 or (kind == "remove" and len(items) == len(pool)):
        return trie, now
    present_N[items] = kind == "restore"
    changed = trie.remove(items) if kind == "remove" else trie.restore(items)
    return changed, Catalogue(now.codes_NL, now.ranks_N, present_N)


@given(histories(), st.data())
@settings(max_examples=60)
def test_any_sequence_of_changes_gives_the_rebuilt_tree_and_leaves_every_snapshot_as_it_was(
    history: tuple[tuple[int, ...], np.ndarray, np.ndarray, list[tuple[str, list[int]]]], data: st.DataObject
) -> None:
    sizes, codes_NL, ranks_N, steps = history
    trie = Trie.from_table(codes_NL, sizes, ranks_N)
    now = Catalogue(codes_NL, ranks_N, np.ones(len(codes_NL), dtype=bool))
    snapshots = [(trie, now)]
    for kind, numbers in steps:
        snapshots.append(apply(*snapshots[-1], kind, numbers))
    for found, expected in snapshots:
        same(found, expected, sizes)
    found, expected = snapshots[-1]
    subsets = st.lists(st.integers(0, found.num_items - 1), max_size=2 * found.num_items)
    excluded = [np.array(data.draw(subsets), dtype=np.int64) for _ in range(2)]
    rebuilt = expected.rebuilt(sizes)
    assert dead_prefixes(found, excluded) == dead_prefixes(rebuilt, excluded)
    assert Exclusions(found, excluded).num_excluded_B.tolist() == Exclusions(rebuilt, excluded).num_excluded_B.tolist()


def test_items_that_join_and_leave_by_hand() -> None:
    """Item 6 brings 011, between two children of a known prefix; item 7 a first code of its own; then 202 leaves."""
    trie = Trie.from_table(CODES_NL, SIZES)
    joined = trie.add(np.array([[0, 1, 1], [1, 2, 3]]))
    assert [item for _, item in paths_of(joined)] == [2, 6, 5, 1, 7, 4, 0, 3]
    assert [joined.num_nodes(level) for level in range(3)] == [3, 4, 8]
    without = joined.remove(np.array([0, 7]))
    assert [item for _, item in paths_of(without)] == [2, 6, 5, 1, 4, 3]
    assert without.ranks_of(torch.tensor([0, 7, 3])).tolist() == [-1, -1, 6]
    assert [item for _, item in paths_of(without.restore(np.array([7])))] == [2, 6, 5, 1, 7, 4, 3]
    assert (trie.num_changes, without.num_changes) == (0, 3)


def test_a_prefix_dies_with_its_last_item_and_comes_back_with_a_new_one() -> None:
    trie = Trie.from_table(CODES_NL, SIZES).remove(np.array([0, 3, 4]))
    root = torch.tensor([[0]])
    assert trie.children(0, root, root == 0).codes_BC[trie.children(0, root, root == 0).present_BC].tolist() == [0]
    back = trie.add(np.array([[2, 0, 2]]))
    assert back.children(0, root, root == 0).codes_BC.tolist() == [[0, 2]]
    assert paths_of(back)[-1] == ((2, 0, 2), 6)


def test_the_arrays_are_shared_and_a_move_takes_the_changes_along() -> None:
    trie = Trie.from_table(CODES_NL, SIZES)
    changed = trie.remove(np.array([1])).add(np.array([[1, 1, 1]]))
    assert changed.item_of_rank is trie.item_of_rank
    assert changed.child_codes is trie.child_codes
    assert paths_of(changed.to("cpu")) == paths_of(changed)
    moved = changed.to("meta")
    assert moved.changes is not None
    assert moved.changes.items_m.is_meta
    assert moved.changes.arrays.item_of_rank.is_meta


@pytest.mark.parametrize("items", [[-1], [6], [1, 1, 9]])
def test_removing_what_is_not_there_is_refused(items: list[int]) -> None:
    trie = Trie.from_table(CODES_NL, SIZES)
    with pytest.raises(DataError, match="expected such as are in the tree"):
        trie.remove(np.array(items))
    with pytest.raises(DataError, match="in the tree"):
        trie.remove(np.array([2])).remove(np.array([2]))


@pytest.mark.parametrize("items", [[0], [7]])
def test_restoring_what_did_not_leave_is_refused(items: list[int]) -> None:
    trie = Trie.from_table(CODES_NL, SIZES).remove(np.array([1]))
    with pytest.raises(DataError, match="not in the tree, but were"):
        trie.restore(np.array(items))
    never = Trie.from_table(CODES_NL, SIZES).restrict(np.arange(6) != 3)
    with pytest.raises(DataError, match=r"found \[3\]"):
        never.restore(np.array([3]))


def test_the_last_item_may_not_leave_and_a_new_one_must_fit() -> None:
    trie = Trie.from_table(CODES_NL, SIZES)
    with pytest.raises(DataError, match="expected one to stay"):
        trie.remove(np.arange(6))
    with pytest.raises(DataError, match="item 0, level 2, found 4, expected 0 to 3"):
        trie.add(np.array([[0, 0, 4]]))
