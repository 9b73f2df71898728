"""The recommender of a run: a model with its catalogue, and beams, precision and options as the config has them."""

from onerec.bundle import build_trie
from onerec.config import RunConfig
from onerec.data.histories import Histories
from onerec.data.pathways import EventSource
from onerec.decoding.new_items import NewItemSlots
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.sessions import ListRecommender
from onerec.decoding.transitions import Transitions
from onerec.model.onerec import OneRec
from tokenizer.table import SemanticIdTable


def run_recommender(
    config: RunConfig,
    model: OneRec,
    table: SemanticIdTable,
    training: Histories,
    source: EventSource | None = None,
    beams_alone: bool = False,
) -> OneRecRecommender:
    """A model as it is evaluated, with beams enough for the longest list that is measured.

    Args:
        training: events that tell which items are new, and what followed what.
        source: events that the model's pathways read, where it has any.
        beams_alone: nothing else proposes items or has a say in their order.
    """
    decoding = config.decoding
    if beams_alone:
        decoding = decoding.model_copy(update={"rescoring": 0.0, "dense_candidates": 0, "transitions": 0.0})
    kind = ListRecommender if model.config.session_items else OneRecRecommender
    return kind(
        model,
        build_trie(table),
        max(decoding.num_beams, config.evaluation.list_length),
        decoding.precision,
        source,
        decoding.rescoring,
        NewItemSlots.of(decoding.new_item_slots, training.item_counts(table.num_items)),
        decoding.dense_candidates,
        Transitions.of(decoding.transitions, training, table.num_items),
    )
