"""How a beam search came to its items: the beams that lived on each level. Shapes: B requests, W beams."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from onerec.decoding.beam import Beams
from onerec.decoding.recommender import OneRecRecommender
from onerec.evaluation.recommender import Ranking
from onerec.model.context import Context
from onerec.serving.schema import BeamLevel


def search_explained(
    recommender: OneRecRecommender, context: Context, k: int, excluded: Sequence[np.ndarray], num_beams: int
) -> tuple[Ranking, list[list[BeamLevel]]]:
    """Search as the recommender does: the ranking, and for each request the beams of each level."""
    levels_B: list[list[BeamLevel]] = [[] for _ in range(context.num_requests)]

    def note(beams: Beams, codes_BW: Tensor, parents_BW: Tensor) -> None:
        for row, num_alive in enumerate(beams.alive_BW.sum(dim=1).tolist()):
            kept = (codes_BW, parents_BW, beams.scores_BW)
            codes, parents, scores = (values_BW[row, :num_alive].tolist() for values_BW in kept)
            levels_B[row].append(BeamLevel(codes=codes, parents=parents, scores=scores))

    return recommender.search(context, k, excluded, num_beams, note), levels_B
