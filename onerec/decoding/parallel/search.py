"""Beam search by processes that each hold the subtree below a range of first codes.

All processes read the same beams, their blocks together. Each then takes its own of them, those whose first code is in
its range, asks the code heads of these alone, and proposes the best continuations; all keep the best of all proposals,
in the order of one process (`onerec.decoding.continuations`): a node's number in the whole tree is its number in the
subtree and those of the subtrees before. A process proposes as many as there are beams, so that none that belongs to
the best is left out.

Shapes: B requests, W beams, O own ones of them, V continuations kept, P of a process, R processes, L levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onerec.decoding.beam import (
    BeamResult,
    Beams,
    Watch,
    check_catalogue,
    check_list_length,
    find_exclusions,
    start_beams,
)
from onerec.decoding.continuations import Continuations, best_continuations, keep_best
from onerec.decoding.exclusions import Exclusions
from onerec.decoding.parallel.model import SharedOneRec
from onerec.decoding.trie import Trie
from onerec.model.context import Context

_NOBODY = -1  # in the place of a proposal's node


@torch.inference_mode()
def search_together(
    model: SharedOneRec,
    context: Context,
    trie: Trie | None,
    num_beams: int,
    k: int,
    excluded: Sequence[np.ndarray] | None = None,
    watch: Watch | None = None,
) -> BeamResult:
    """Find what `beam_search` finds in the whole tree; all processes together, each with its own part of the tree.

    Args:
        trie: the items of the tree that are in this process's share; None where none is.
        watch: of this process alone, see `beam_search`; its nodes are those of the whole tree.

    Raises:
        ConfigError, ArtifactError, DataError, OneRecError: as `beam_search`.
    """
    check_list_length(k, num_beams)
    subtree, cache = Subtree.of(trie, model, excluded, context.num_requests), model.new_cache()
    beams, codes_BW = subtree.root(context.newest_BD), None
    for level in range(model.config.num_levels):
        states_BWD = model.read_codes(codes_BW, level, context, cache)
        own, slots_BO = subtree.own(beams, level)
        states_BOD = states_BWD.take_along_dim(slots_BO[..., None], dim=1)
        logits_BOK = model.code_heads(states_BOD, level, cache.prefixes_BW.gather(1, slots_BO), context.catalogue)
        proposed_BP4 = subtree.propose(own, slots_BO, logits_BOK.log_softmax(dim=-1), level, num_beams)
        best = best_of_all(model.share.processes.gather(proposed_BP4), num_beams)
        beams, codes_BW = Beams(best.nodes_BV, best.scores_BV, best.alive_BV), best.codes_BV
        if watch is not None:
            watch(beams, codes_BW, best.slots_BV)
        if level < model.config.num_levels - 1:
            cache.reorder(best.slots_BV)
    items_BW = model.share.processes.sum(subtree.items(beams)).masked_fill_(~beams.alive_BW, -1)
    return BeamResult.of(items_BW, beams.scores_BW, k)


@dataclass(frozen=True)
class Subtree:
    """This process's part of a tree, and where its nodes stand in the whole one."""

    trie: Trie | None
    exclusions: Exclusions | None
    first_nodes_L: list[int]
    num_nodes_L: list[int]

    @classmethod
    def of(
        cls, trie: Trie | None, model: SharedOneRec, excluded: Sequence[np.ndarray] | None, num_requests: int
    ) -> Self:
        """All processes together; errors as `beam_search` has them."""
        exclusions = None
        if trie is not None:
            check_catalogue(model, trie)
            exclusions = find_exclusions(trie, excluded, num_requests)
        num_nodes_L = [0 if trie is None else trie.num_nodes(level) for level in range(model.config.num_levels)]
        processes = model.share.processes
        before_RL = processes.gather(torch.tensor(num_nodes_L, device=processes.device))[: processes.rank]
        return cls(trie, exclusions, before_RL.sum(dim=0).tolist(), num_nodes_L)

    def root(self, newest_BD: Tensor) -> Beams:
        """One empty prefix a request, dead where nothing of this part is allowed."""
        if self.trie is not None:
            return start_beams(len(newest_BD), self.exclusions, self.trie)
        zeros_B1 = torch.zeros_like(newest_BD[:, :1], dtype=torch.float32)
        return Beams(zeros_B1.long(), zeros_B1, zeros_B1.bool())

    def own(self, beams: Beams, level: int) -> tuple[Beams, Tensor]:
        """The beams of `level` codes that are this part's, by its own numbers, and their slots (B, O)."""
        if level == 0:
            return beams, torch.zeros_like(beams.nodes_BW)
        nodes_BW = beams.nodes_BW - self.first_nodes_L[level - 1]
        own_BW = beams.alive_BW & (nodes_BW >= 0) & (nodes_BW < self.num_nodes_L[level - 1])
        most = max(1, int(own_BW.sum(dim=1).max()))
        slots_BO = own_BW.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        alive_BO = own_BW.gather(1, slots_BO)
        nodes_BO = nodes_BW.gather(1, slots_BO).masked_fill_(~alive_BO, 0)
        return Beams(nodes_BO, beams.scores_BW.gather(1, slots_BO), alive_BO), slots_BO

    def propose(self, own: Beams, slots_BO: Tensor, log_probs_BOK: Tensor, level: int, num_beams: int) -> Tensor:
        """The best continuations in this part, int32 (B, P, 4): bits of the score, node, code and slot, P = beams."""
        if self.trie is None:
            return torch.full((len(slots_BO), num_beams, 4), _NOBODY, dtype=torch.int32, device=slots_BO.device)
        best = best_continuations(
            self.trie, level, own.nodes_BW, own.alive_BW, own.scores_BW, log_probs_BOK, num_beams, self.exclusions
        )
        nodes_BV = (best.nodes_BV + self.first_nodes_L[level]).masked_fill_(~best.alive_BV, _NOBODY)
        slots_BV = slots_BO.gather(1, best.slots_BV)
        fields_BV4 = torch.stack([best.scores_BV.view(torch.int32), nodes_BV, best.codes_BV, slots_BV], dim=2)
        return F.pad(fields_BV4.int(), (0, 0, 0, num_beams - fields_BV4.size(1)), value=_NOBODY)

    def items(self, leaves: Beams) -> Tensor:
        """The items (B, W) of beams that are this part's, 0 for others."""
        own, slots_BO = self.own(leaves, len(self.num_nodes_L))
        items_BW = torch.zeros_like(leaves.nodes_BW)
        if self.trie is None:
            return items_BW
        return items_BW.scatter_(1, slots_BO, self.trie.items_of(own.nodes_BW).masked_fill(~own.alive_BW, 0))


def best_of_all(proposed_RBP4: Tensor, num_beams: int) -> Continuations:
    """The best of what all processes propose, as many as live in some request."""
    fields_BC4 = proposed_RBP4.transpose(0, 1).flatten(1, 2)
    bits_BC, nodes_BC, codes_BC, slots_BC = fields_BC4.unbind(dim=2)
    scores_BC, allowed_BC = bits_BC.contiguous().view(torch.float32), nodes_BC != _NOBODY
    most = max(1, int(allowed_BC.sum(dim=1).max()))
    nodes_BC, codes_BC, slots_BC = (field_BC.clamp(min=0).long() for field_BC in (nodes_BC, codes_BC, slots_BC))
    return keep_best(scores_BC, nodes_BC, codes_BC, slots_BC, allowed_BC, min(num_beams, most))
