"""How a beam search came to its items: the beams that lived on each level.

The steps are those of `onerec.decoding.beam`, so that an explained answer is the answer. Shapes: B requests, W beams.
"""

from collections.abc import Sequence

import numpy as np
import torch

from onerec.decoding.beam import (
    advance_beams,
    check_catalogue,
    collect_items,
    find_exclusions,
    start_beams,
)
from onerec.decoding.recommender import OneRecRecommender
from onerec.evaluation.recommender import Ranking
from onerec.model.context import Context
from onerec.serving.schema import BeamLevel


@torch.inference_mode()
def search_explained(
    recommender: OneRecRecommender, context: Context, k: int, excluded: Sequence[np.ndarray], num_beams: int
) -> tuple[Ranking, list[list[BeamLevel]]]:
    """Search as the recommender does: the ranking, and for each request the beams of each level."""
    model, trie = recommender.model, recommender.trie
    check_catalogue(model, trie)
    exclusions = find_exclusions(trie, excluded, context.num_requests)
    cache = model.new_cache()
    beams, codes_BW = start_beams(context.num_requests, exclusions, trie), None
    levels_B: list[list[BeamLevel]] = [[] for _ in range(context.num_requests)]
    for level in range(trie.num_levels):
        log_probs_BWK = model.decode_step(codes_BW, level, context, cache)
        beams, codes_BW, parents_BW = advance_beams(beams, log_probs_BWK, trie, level, num_beams, exclusions)
        if level < trie.num_levels - 1:
            cache.reorder(parents_BW)
        for row, num_alive in enumerate(beams.alive_BW.sum(dim=1).tolist()):
            kept = (codes_BW, parents_BW, beams.scores_BW)
            codes, parents, scores = (values_BW[row, :num_alive].tolist() for values_BW in kept)
            levels_B[row].append(BeamLevel(codes=codes, parents=parents, scores=scores))
    found = collect_items(beams, trie, k)
    ranking = Ranking(found.items_BK.to("cpu", torch.int32).numpy(), found.scores_BK.cpu().numpy())
    return ranking, levels_B
