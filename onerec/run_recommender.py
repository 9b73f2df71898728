"""The recommender of a run: a model with its catalogue, and beams, precision and options as the config has them."""

import numpy as np

from onerec.bundle import build_trie
from onerec.config import RunConfig
from onerec.data.pathways import EventSource
from onerec.decoding.new_items import NewItemSlots
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.sessions import ListRecommender
from onerec.model.onerec import OneRec
from tokenizer.table import SemanticIdTable


def run_recommender(
    config: RunConfig,
    model: OneRec,
    table: SemanticIdTable,
    counts_N: np.ndarray,
    source: EventSource | None = None,
    rescoring: float | None = None,
) -> OneRecRecommender:
    """A model as it is evaluated, with beams enough for the longest list that is measured.

    Args:
        counts_N: training events of each item, which tell the new ones.
        source: events that the model's pathways read, where it has any.
        rescoring: the item head's weight, where it is not the config's; at 0 it proposes nothing either.
    """
    decoding = config.decoding
    weight = decoding.rescoring if rescoring is None else rescoring
    kind = ListRecommender if model.config.session_items else OneRecRecommender
    return kind(
        model,
        build_trie(table),
        max(decoding.num_beams, config.evaluation.list_length),
        decoding.precision,
        source,
        weight,
        NewItemSlots.of(decoding.new_item_slots, counts_N),
        decoding.dense_candidates if weight else 0,
    )
