"""Log-softmax, trie and top-k in one kernel against a sort of everything, and against the step that a CPU takes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference, triton_trie_top_k
from kernels.triton_trie_top_k import trie_top_k
from onerec.decoding.continuations import best_continuations
from onerec.decoding.exclusions import Exclusions
from onerec.decoding.trie import Trie

RANGE_BITS = 4


def dead_of(excluded_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Exclusion bits of the given nodes, a block for each range."""
    padded = torch.nn.functional.pad(excluded_BN, (0, -excluded_BN.size(1) % (1 << RANGE_BITS)))
    bytes_Bn8 = padded.unflatten(1, (-1, 8)).long() * 2 ** torch.arange(8)
    blocks_BR = torch.arange(padded.numel() >> RANGE_BITS).view(len(padded), -1)
    return blocks_BR, bytes_Bn8.sum(dim=2).flatten().to(torch.uint8), RANGE_BITS


@given(
    seed=st.integers(0, 2**16),
    num_codes=st.sampled_from([5, 40, 100]),
    num_beams=st.integers(1, 4),
    num_kept=st.integers(1, 9),
    excludes=st.booleans(),
    coarse=st.booleans(),
)
@settings(max_examples=5)
def test_equals_the_reference_over_random_trees(
    seed: int, num_codes: int, num_beams: int, num_kept: int, excludes: bool, coarse: bool
) -> None:
    """Coarse logits make ties."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, num_codes + 1, (6,), generator=generator)
    codes = torch.cat([torch.randperm(num_codes, generator=generator)[:n].sort().values for n in counts.tolist()])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    parents_BW = torch.stack([torch.randperm(6, generator=generator)[:num_beams] for _ in range(2)])
    begins_BW, ends_BW = offsets[parents_BW], offsets[parents_BW + 1]
    ends_BW[1, -1] = begins_BW[1, -1]  # a dead beam
    logits_BWK = torch.randn(2, num_beams, num_codes, generator=generator)
    scores_BW = torch.randn(2, num_beams, generator=generator)
    if coarse:
        logits_BWK, scores_BW = torch.zeros_like(logits_BWK), torch.zeros_like(scores_BW)
    excluded_BN = torch.rand(2, len(codes), generator=generator) < 0.4 if excludes else None
    arguments = logits_BWK, scores_BW, begins_BW, ends_BW, codes.short()
    dead = None if excluded_BN is None else dead_of(excluded_BN)
    found = trie_top_k(*arguments, most_children=int(counts.max().clamp(min=1)), num_kept=num_kept, dead_bits=dead)
    expected = reference.trie_top_k(*arguments, excluded_BN, num_kept)
    for b, rows in enumerate(expected):
        scores_V, nodes_V, beams_V, alive_V = (column[b] for column in found)
        assert alive_V.tolist() == [True] * len(rows) + [False] * (len(alive_V) - len(rows))
        assert list(zip(nodes_V.tolist(), beams_V.tolist(), strict=True))[: len(rows)] == [row[1:] for row in rows]
        torch.testing.assert_close(scores_V[: len(rows)], torch.tensor([row[0] for row in rows]), rtol=1e-5, atol=1e-5)
        assert scores_V[len(rows) :].isneginf().all()


@pytest.mark.parametrize("normalise", [False, True])
def test_the_decoders_step_takes_it_with_the_same_beams(normalise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A level of more children than one tile holds, with exclusions."""
    monkeypatch.setattr(triton_trie_top_k, "_MOST_CHILDREN", 32)
    generator = np.random.default_rng(0)
    flat_N = generator.choice(4 * 150, size=500, replace=False)
    trie = Trie.from_table(np.stack(np.unravel_index(flat_N, (4, 150)), axis=1), (4, 150))
    exclusions = Exclusions(trie, [generator.integers(trie.num_items, size=200) for _ in range(2)])
    torch.manual_seed(0)
    nodes_BW, alive_BW = torch.tensor([[0, 3, 1], [2, 1, 0]]), torch.tensor([[True, True, True], [True, False, True]])
    beams = nodes_BW, alive_BW, torch.randn(2, 3)
    logits_BWK = torch.randn(2, 3, 150)
    found, expected = (
        best_continuations(trie, 1, *beams, logits_BWK, 20, exclusions, normalise=normalise, backend=name)
        for name in ("triton", "torch")
    )
    for ours, theirs in zip(vars(found).values(), vars(expected).values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_request_without_a_living_beam_gets_nothing() -> None:
    zeros_BW = torch.zeros(1, 2, dtype=torch.int64)
    codes = torch.zeros(1, dtype=torch.uint8)
    scores, _, _, alive = trie_top_k(torch.zeros(1, 2, 16), torch.zeros(1, 2), zeros_BW, zeros_BW, codes, 1, 3)
    assert not alive.any()
    assert scores.isneginf().all()
