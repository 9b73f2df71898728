"""The best continuations, by listing or by probing, against a sort of everything."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onerec.decoding import continuations
from onerec.decoding import trie as trie_module
from onerec.decoding.continuations import Continuations, best_continuations, top_of_sums
from onerec.decoding.exclusions import Exclusions
from onerec.decoding.trie import Trie
from onerec.errors import OneRecError


def sort_all(
    trie: Trie, level: int, beams: tuple[Tensor, Tensor, Tensor], logits_BWK: Tensor, k: int, dead: Exclusions | None
) -> list[list[tuple[float, int, int, int]]]:
    """(-score, node, code, slot) of the best k of each request."""
    nodes_BW, alive_BW, scores_BW = beams
    children = trie.children(level, nodes_BW, alive_BW)
    allowed_BC = children.present_BC
    if dead is not None and (dead_BC := dead.contains(level, children.nodes_BC)) is not None:
        allowed_BC = allowed_BC & ~dead_BC
    steps_BWK = logits_BWK.log_softmax(dim=2)
    best = []
    for row in range(len(nodes_BW)):
        rows = []
        for place in allowed_BC[row].nonzero()[:, 0].tolist():
            slot, node, code = (int(x[row, place]) for x in (children.slots_BC, children.nodes_BC, children.codes_BC))
            score = scores_BW[row, slot] + steps_BWK[row, slot, code]
            rows.append((-score.item(), node, code, slot))
        best.append(sorted(rows)[:k])
    return best


def as_rows(found: Continuations) -> list[list[tuple[float, int, int, int]]]:
    columns = (-found.scores_BV, found.nodes_BV, found.codes_BV, found.slots_BV)
    return [
        [
            row
            for row, alive in zip(
                zip(*(x[b].tolist() for x in columns), strict=True), found.alive_BV[b].tolist(), strict=True
            )
            if alive
        ]
        for b in range(len(found.alive_BV))
    ]


@given(
    seed=st.integers(0, 2**16),
    share=st.floats(0.02, 1.0),
    num_codes=st.sampled_from([7, 64, 128]),
    k=st.integers(1, 12),
    excluding=st.booleans(),
    coarse=st.booleans(),
    how=st.sampled_from(["as it comes", "probe", "bisect", "list", "changed"]),
)
@settings(max_examples=60)
def test_the_best_of_everything_come_back_whichever_way_is_taken(
    seed: int, share: float, num_codes: int, k: int, excluding: bool, coarse: bool, how: str
) -> None:
    """Coarse logits make ties, which go to the first in the trie.

    Probes are looked up in bits where a level has them, which it has by the same share, and elsewhere by bisection.
    """
    generator = np.random.default_rng(seed)
    space = 6 * num_codes
    flat_N = generator.choice(space, size=max(2, int(share * space)), replace=False)
    codes_NL = np.stack(np.unravel_index(flat_N, (6, num_codes)), axis=1)
    trie = Trie.from_table(codes_NL, (6, num_codes))
    excluded = [generator.integers(trie.num_items, size=20 * excluding) for _ in range(2)]
    if how == "changed":
        trie = trie.remove(np.array([1])).add(codes_NL[1:2])
    dead = Exclusions(trie, excluded) if excluding else None
    torch.manual_seed(seed)
    nodes_BW = torch.stack([torch.randperm(trie.num_nodes(0))[: min(3, trie.num_nodes(0))] for _ in range(2)])
    alive_BW = torch.rand(nodes_BW.shape) < 0.8
    logits_BWK = torch.randn(*nodes_BW.shape, num_codes)
    scores_BW = torch.randn(nodes_BW.shape)
    if coarse:
        logits_BWK, scores_BW = logits_BWK.round(), torch.zeros_like(scores_BW)
    beams = (nodes_BW, alive_BW, scores_BW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            trie_module, "SPARSE_SHARE", 2.0 if how in ("list", "bisect") else 0.0 if how == "probe" else 1 / 16
        )
        is_without_bits = trie.child_bits == (None, None)
        if how == "bisect":
            patch.setattr(trie_module, "SPARSE_SHARE", 0.0)
        found = best_continuations(trie, 1, *beams, logits_BWK, k, dead, normalise=True)
    assert is_without_bits == (how in ("list", "bisect"))
    assert as_rows(found) == sort_all(trie, 1, beams, logits_BWK, k, dead)


def test_probing_is_what_a_full_level_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 x 128 items of 16 x 256 codes: half of all codes may follow, and the children are never listed."""
    codes_NL = np.stack(np.unravel_index(np.arange(16 * 128), (16, 128)), axis=1) * [1, 2]
    trie = Trie.from_table(codes_NL, (16, 256))
    torch.manual_seed(0)
    beams = torch.arange(16)[None], torch.ones(1, 16, dtype=torch.bool), torch.randn(1, 16)
    logits_BWK = torch.randn(1, 16, 256)
    expected = sort_all(trie, 1, beams, logits_BWK, 10, None)
    monkeypatch.setattr(Trie, "children", None)
    assert as_rows(best_continuations(trie, 1, *beams, logits_BWK, 10, normalise=True)) == expected


def test_probes_that_are_mostly_forbidden_fall_back_to_the_list() -> None:
    """The 64 best codes by far may not follow: probing finds too few and says so."""
    codes_NL = np.stack([np.zeros(64, dtype=int), np.arange(64)], axis=1)
    trie = Trie.from_table(codes_NL, (1, 128))
    logits_BWK = torch.cat([torch.zeros(1, 1, 64), torch.full((1, 1, 64), 9.0)], dim=2)
    beams = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1)
    found = best_continuations(trie, 1, *beams, logits_BWK, 4)
    assert found.codes_BV.tolist() == [[0, 1, 2, 3]]


def test_probes_of_which_too_few_may_follow_fall_back_to_the_list() -> None:
    """A single request, whose row of those that may is as long as there are: 2 of the 10 best, 6 wanted."""
    codes = np.array([0, 1, *range(64, 126)])
    trie = Trie.from_table(np.stack([np.zeros(64, dtype=int), codes], axis=1), (1, 128))
    logits_BWK = torch.arange(128.0).neg()[None, None]
    beams = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continuations, "_MOST_IN_CHUNK", 1)
        found = best_continuations(trie, 1, *beams, logits_BWK, 6)
    assert found.codes_BV.tolist() == [[0, 1, 64, 65, 66, 67]]


def test_a_bucket_is_listed_since_one_code_stands_for_all_its_items() -> None:
    trie = Trie.from_table(np.array([[0, 1], [0, 1], [0, 0]]), (1, 2), np.array([1, 0, 0]))
    assert not trie.has_unique_codes
    beams = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1)
    found = best_continuations(trie, 1, *beams, torch.tensor([[[0.0, 1.0]]]), 3)
    assert trie.items_of(found.nodes_BV).tolist() == [[1, 0, 2]]


@given(
    seed=st.integers(0, 2**16),
    num_codes=st.sampled_from([7, 32, 64, 100, 640]),
    num_beams=st.integers(1, 5),
    count=st.integers(1, 30),
    coarse=st.booleans(),
)
def test_the_top_of_sums_is_all_that_reaches_its_bound(
    seed: int, num_codes: int, num_beams: int, count: int, coarse: bool
) -> None:
    """Coarse logits tie with the bound, where some may be left out."""
    torch.manual_seed(seed)
    logits_BWK, shifts_BW = torch.randn(2, num_beams, num_codes), torch.randn(2, num_beams)
    if coarse:
        logits_BWK, shifts_BW = logits_BWK.round(), shifts_BW.round()
    count = min(count, num_beams * num_codes // math.gcd(num_codes, 64))
    places_p, bound_B = top_of_sums(logits_BWK, shifts_BW, count)
    assert (places_p // logits_BWK[0].numel()).diff().ge(0).all()
    sums_BWK = logits_BWK + shifts_BW[..., None]
    for request, sums in enumerate(sums_BWK.flatten(1)):
        places = places_p[places_p // len(sums) == request] % len(sums)
        found = set(places.tolist())
        assert len(found) == len(places) >= count
        assert set((sums > bound_B[request]).nonzero()[:, 0].tolist()) <= found
        assert (sums[places] >= bound_B[request]).all()


@pytest.mark.parametrize("level", [0, 1])
def test_a_score_that_is_no_number_is_refused(level: int) -> None:
    """The root's children are listed, those of a full level probed."""
    trie = Trie.from_table(np.stack([np.zeros(64, dtype=int), np.arange(64)], axis=1)[:, [1 - level, level]], (64, 64))
    beams = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1)
    logits_BWK = torch.zeros(1, 1, 64)
    logits_BWK[0, 0, 3] = float("nan")
    with pytest.raises(OneRecError, match=f"level {level}: 1 of"):
        best_continuations(trie, level, *beams, logits_BWK, 2)


def test_what_scores_below_the_floor_dies_and_is_not_kept() -> None:
    trie = Trie.from_table(np.arange(4)[:, None], (4,))
    beams = torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1)
    logits_BWK = torch.tensor([[[-1.0, -3.0, -2.0, -4.0]], [[-1.0, -9.0, -9.0, -9.0]]])
    found = best_continuations(trie, 0, *beams, logits_BWK, 4, floor_B=torch.tensor([-3.0, -3.0]))
    assert found.codes_BV[0].tolist() == [0, 2, 1]
    assert found.alive_BV.tolist() == [[True, True, True], [True, False, False]]
    assert found.scores_BV[1, 1:].isneginf().all()
