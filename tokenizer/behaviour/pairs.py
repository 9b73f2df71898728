"""Pairs of items that the contrastive loss draws together, from training events alone.

OneRec technical report (arXiv 2506.13695, tokenizer): *user-to-item* pairs join a positive event's item with the
collaboratively closest of the user's recent ones, *item-to-item* pairs join items of high Swing similarity. Assumed,
where our reading of the report leaves it open:
1. Collaboratively closest is by the cosine of the collaborative vectors (`tokenizer/collaborative.py`); of equals the
   most recent.
2. Every training event is a positive one: what counts as positive is decided where the events are prepared.

Legend: E events, N items, D width, P pairs.
"""

from dataclasses import dataclass

import numpy as np

from tokenizer.behaviour.swing import swing_similarity
from tokenizer.collaborative import collaborative_vectors
from tokenizer.config import TokenizerSettings
from tokenizer.errors import DataError
from tokenizer.quantizers.residual import iterate_chunks
from tokenizer.sequences import Sequences

_CHUNK_EVENTS = 65_536


@dataclass(frozen=True)
class ItemPairs:
    """Items to draw together.

    Args:
        pairs_P2: int64 (P, 2); each row's first item is drawn to its second.
        num_user_pairs: rows from users' events, the first ones.
        num_swing_pairs: rows from Swing similarity, the others.
        capped_items: items of which Swing did not count all users.
        meetings_left_out: (user, item) meetings that Swing did not count.
    """

    pairs_P2: np.ndarray
    num_user_pairs: int
    num_swing_pairs: int
    capped_items: int
    meetings_left_out: int


def behaviour_pairs(sequences: Sequences, has_tokens_N: np.ndarray, settings: TokenizerSettings) -> ItemPairs:
    """Both kinds of pairs, of items that have token vectors.

    Args:
        sequences: training events only.
        has_tokens_N: bool, which items there is anything to read of.

    Raises:
        DataError: not one pair.
    """
    num_items, chosen = len(has_tokens_N), settings.behaviour
    vectors_ND = collaborative_vectors(sequences, num_items, settings.collaborative, settings.seed)
    swing = swing_similarity(sequences, num_items, chosen.swing, settings.seed)
    both = (user_pairs(sequences, vectors_ND, chosen.recent_items), swing.neighbours(chosen.swing.neighbours))
    user_P2, swing_P2 = (pairs_P2[has_tokens_N[pairs_P2].all(axis=1)] for pairs_P2 in both)
    if not len(user_P2) + len(swing_P2):
        raise DataError(
            "behaviour vectors: no two items with text or image are met by one user in training. "
            "Give longer histories, or set tokenizer.behaviour.weight to 0."
        )
    pairs_P2 = np.concatenate([user_P2, swing_P2])
    return ItemPairs(pairs_P2, len(user_P2), len(swing_P2), swing.capped_items, swing.left_out)


def user_pairs(sequences: Sequences, vectors_ND: np.ndarray, recent_items: int) -> np.ndarray:
    """(item of an event, closest of the `recent_items` events before it), int64 (P, 2), in the order of the events.

    Events without another item before them that has a vector, or whose own item has none, give no pair.
    """
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND = np.divide(vectors_ND, lengths_N1, out=np.zeros_like(vectors_ND), where=lengths_N1 > 0)
    is_known_N = lengths_N1[:, 0] > 0
    items = sequences.items.astype(np.int64)
    start_E = np.repeat(sequences.offsets[:-1], np.diff(sequences.offsets))
    parts = []
    for rows in iterate_chunks(len(items), _CHUNK_EVENTS, "user-to-item pairs"):
        event_E = np.arange(rows.start, rows.stop)
        best_E, closest_E = np.full(len(event_E), -np.inf), np.full(len(event_E), -1)
        for distance in range(1, recent_items + 1):
            earlier_E = items[np.maximum(event_E - distance, 0)]
            cosine_E = np.einsum("ED,ED->E", unit_ND[items[rows]], unit_ND[earlier_E])
            nearer_E = (event_E - distance >= start_E[rows]) & (earlier_E != items[rows])
            nearer_E &= is_known_N[items[rows]] & is_known_N[earlier_E] & (cosine_E > best_E)
            best_E[nearer_E], closest_E[nearer_E] = cosine_E[nearer_E], earlier_E[nearer_E]
        found_E = closest_E >= 0
        parts.append(np.stack([items[rows][found_E], closest_E[found_E]], axis=1))
    return np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.int64)
