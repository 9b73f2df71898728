"""The method of STATIC, written after its paper, as a rival: dense tables for two levels, sparse rows below.

Su et al. 2026, "Vectorizing the Trie: Efficient Constrained Decoding for LLM-based Generative Retrieval on
Accelerators" (arXiv 2602.22647). The prefix tree becomes a transition matrix. Its first two levels are tables of which
codes may follow and of the state they lead to. Of each further level every state's row is read from compressed sparse
rows in one gather, as many places as the level's largest branching, and what lies beyond the row is masked. The step is
log-softmax, mask and top-k over all beams' candidates.

Departures:
1. The best beams come from one top-k over all of a request's candidates, where the authors' PyTorch code first takes
   some of each beam: the same result when those are enough, and faster here.
2. States are numbered level by level, so that the last level's are the items in code order.

Legend: B requests, W beams, V beams of the next level, K codes of a level, N items, C candidates of a beam.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class StaticIndex:
    """The transition matrix of a catalogue of at least two levels of K codes each."""

    start_K: Tensor  # bool, the first codes
    dense_KK: Tensor  # bool, the pairs of first and second code
    states_KK: Tensor  # int32, where they lead to
    offsets: tuple[Tensor, ...]  # of each further level, int32
    rows: tuple[Tensor, ...]  # of each further level: int32 (places, 2), code and next state
    branchings: tuple[int, ...]  # of each further level, the largest
    item_of_state: Tensor

    @classmethod
    def from_table(cls, codes_NL: np.ndarray, num_codes: int) -> "StaticIndex":
        """Index items of distinct codes."""
        keys_N = codes_NL @ (num_codes ** np.arange(codes_NL.shape[1], dtype=np.int64)[::-1])
        order_N = np.argsort(keys_N)
        sorted_NL = codes_NL[order_N].astype(np.int64)
        begins_N = np.ones(len(order_N), dtype=bool)
        begins_N[1:] = (sorted_NL[1:, :2] != sorted_NL[:-1, :2]).any(axis=1)
        first = sorted_NL[begins_N, 0] * num_codes + sorted_NL[begins_N, 1]
        states = torch.zeros(num_codes**2, dtype=torch.int32)
        states[torch.from_numpy(first)] = torch.arange(len(first), dtype=torch.int32)
        dense = torch.zeros(num_codes**2, dtype=torch.bool)
        dense[torch.from_numpy(first)] = True
        offsets, rows, branchings = [], [], []
        for level in range(2, codes_NL.shape[1]):
            above = begins_N.cumsum() - 1
            begins_N[1:] |= sorted_NL[1:, level] != sorted_NL[:-1, level]
            counts = np.bincount(above[begins_N])
            pairs = np.stack([sorted_NL[begins_N, level], np.arange(begins_N.sum())], axis=1)
            offsets.append(torch.from_numpy(np.append(0, counts.cumsum()).astype(np.int32)))
            rows.append(torch.from_numpy(pairs.astype(np.int32)))
            branchings.append(int(counts.max()))
        shape = (num_codes, num_codes)
        dense_KK, states_KK = dense.view(shape), states.view(shape)
        tail = tuple(offsets), tuple(rows), tuple(branchings)
        return cls(dense_KK.any(dim=1), dense_KK, states_KK, *tail, torch.from_numpy(order_N))

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors but the items."""
        tensors = [self.start_K, self.dense_KK, self.states_KK, *self.offsets, *self.rows]
        return sum(tensor.nbytes for tensor in tensors)

    def advance(
        self, level: int, states_BW: Tensor, scores_BW: Tensor, logits_BWK: Tensor, num_beams: int
    ) -> tuple[Tensor, Tensor]:
        """States and scores (B, V) of the best beams; the states of level 1 are the first codes."""
        steps_BWK = logits_BWK.log_softmax(dim=2)
        if level < 2:
            mask = self.start_K if level == 0 else self.dense_KK[states_BW]
            steps_BWC = steps_BWK.masked_fill(~mask, float("-inf"))
        else:
            codes_BWC, next_BWC, present_BWC = self._read_rows(level - 2, states_BW)
            steps_BWC = steps_BWK.gather(2, codes_BWC).masked_fill_(~present_BWC, float("-inf"))
        all_BC = (scores_BW[..., None] + steps_BWC).flatten(1)
        best_BV, chosen_BV = all_BC.topk(min(num_beams, all_BC.size(1)), dim=1)
        if level == 0:
            return chosen_BV, best_BV
        if level > 1:
            return next_BWC.flatten(1).gather(1, chosen_BV), best_BV
        num_codes = logits_BWK.size(2)
        parents_BV = states_BW.gather(1, chosen_BV // num_codes)
        return self.states_KK[parents_BV, chosen_BV % num_codes].long(), best_BV

    def _read_rows(self, tail: int, states_BW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        offsets, rows = self.offsets[tail], self.rows[tail]
        starts_BW = offsets[states_BW]
        lengths_BW = offsets[states_BW + 1] - starts_BW
        place_C = torch.arange(self.branchings[tail], dtype=torch.int32, device=states_BW.device)
        read_BWC2 = rows[(starts_BW[..., None] + place_C).clamp_(max=len(rows) - 1)].long()
        return read_BWC2[..., 0], read_BWC2[..., 1], place_C < lengths_BW[..., None]
