"""Further opinions on what beam search found: of the item head, of heads over ids, of the log's transitions.

A head ranks all items at once by one vector each, the decoder one code after another; what they know together is more
than any of them does (measured on Amazon-2014 Beauty). The score of a found item becomes the log-probability of its
codes plus a weight times the log-probability that each head gives it among the items found, and likewise for
`onerec.decoding.transitions`. So a request reads the vectors of its own beams alone, whatever the size of the
catalogue, and an item that no beam reached cannot come back in; `onerec.decoding.dense_candidates` buys that dearly.

Shapes: B requests, W items found a request, N items, E width of item vectors, S history length in items.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from onerec.decoding.beam import BeamResult
from onerec.errors import ConfigError
from onerec.model.configuration import OneRecConfig
from onerec.model.context import Context
from onerec.model.onerec import OneRec


def check_rescoring(config: OneRecConfig, weight: float, dense_candidates: int = 0) -> None:
    """Refuse a weight for the item head where none has read the context, and candidates where there is no weight.

    Raises:
        ConfigError: no item head, or a lazy context, whose states have read nothing; candidates of heads without a
            weight.
    """
    if dense_candidates and not weight:
        raise ConfigError(
            f"decoding.dense_candidates: found {dense_candidates} beside decoding.rescoring 0, which gives the heads "
            "that propose them no say in the order. Set rescoring above 0, or dense_candidates to 0."
        )
    if weight and not config.item_head_weight:
        raise ConfigError(
            f"decoding.rescoring: found {weight} for a model without an item head, expected 0. "
            "Train with model.item_head_weight above 0."
        )
    if weight and config.context == "lazy":
        raise ConfigError(
            f"decoding.rescoring: found {weight} for a model with a lazy context, expected 0. "
            "Set it to 0, or train with model.context=causal."
        )


class ItemVectors(Protocol):
    """The vectors of all items (N, E), wherever they are."""

    def __getitem__(self, items: Tensor, /) -> Tensor:
        """Those of some items (...) -> (..., E)."""


def rescore(found: BeamResult, opinions: Sequence[tuple[float, Tensor]]) -> BeamResult:
    """The same items in the order of all opinions, each a weight and logits (B, W); equal scores keep their order."""
    missing_BW, scores_BW = found.items_BK < 0, found.scores_BK
    for weight, logits_BW in opinions:
        scores_BW = scores_BW + weight * logits_BW.masked_fill(missing_BW, float("-inf")).log_softmax(dim=1)
    scores_BW = scores_BW.masked_fill(missing_BW, float("-inf"))
    scores_BW, order_BW = scores_BW.sort(dim=1, descending=True, stable=True)
    return BeamResult(items_BK=found.items_BK.gather(1, order_BW), scores_BK=scores_BW)


@torch.inference_mode()
def head_opinions(found: BeamResult, model: OneRec, context: Context, vectors_NE: ItemVectors) -> list[Tensor]:
    """Logits (B, W) of the items found, by the item head and by each head over ids."""
    assert model.item_head is not None
    items_BW = found.items_BK.clamp(min=0)
    seen_BW = _seen(items_BW, context)
    heads = zip(model.id_heads, context.id_states, strict=True)
    return [
        model.item_head.score(context.newest_BD, vectors_NE[items_BW], seen_BW),
        *(head.score(states_BE, items_BW, seen_BW) for head, states_BE in heads),
    ]


@torch.inference_mode()
def opinions_of_all(model: OneRec, context: Context, vectors_NE: Tensor) -> Tensor:
    """The sum (B, N) of the heads' logits of all items; the order is that of their summed log-probabilities."""
    assert model.item_head is not None
    columns_BS, seen_BS = _seen_columns(context)
    logits_BN = model.item_head(context.newest_BD, vectors_NE, columns_BS, seen_BS).logits()
    for head, states_BE in zip(model.id_heads, context.id_states, strict=True):
        logits_BN += head(states_BE, None, columns_BS, seen_BS).logits()
    return logits_BN


def _seen_columns(context: Context) -> tuple[Tensor, Tensor]:
    """Items (B, S) of the histories, and which places count; none where no head asks."""
    seen = context.catalogue.seen
    if seen is None:
        nothing = torch.zeros(context.num_requests, 0, dtype=torch.int64, device=context.newest_BD.device)
        return nothing, nothing.bool()
    items_BS = seen.items[:, 0]
    return items_BS.clamp(min=0), items_BS >= 0


def _seen(items_BW: Tensor, context: Context) -> Tensor:
    """Which items (B, W) the history holds, as far as the model reads it; none where no head asks."""
    seen = context.catalogue.seen
    if seen is None:
        return torch.zeros_like(items_BW, dtype=torch.bool)
    return (items_BW[:, :, None] == seen.items).any(dim=-1)
