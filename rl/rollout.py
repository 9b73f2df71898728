"""Prompts out of the training events, and what the policy generates for them.

A prompt is a training event: its user's training events before it are the history, the event's item is the target.
Held-out events are neither; the users' validation and test items stay unseen.

Shapes: B prompts, S history length in items, G samples of a prompt.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onerec.data.histories import Histories
from onerec.data.pathways import WindowPathways
from onerec.decoding.beam import beam_search
from onerec.decoding.sampling import sample_distinct_items, sample_items
from onerec.decoding.trie import Trie
from onerec.errors import DataError
from onerec.model.context import Context
from onerec.model.onerec import OneRec
from rl.settings import RolloutSettings


@dataclass(frozen=True)
class PromptBatch:
    """Some prompts, on the model's device."""

    rows_B: np.ndarray  # of the training events
    histories_BS: Tensor  # newest readable items, right-padded with 0
    lengths_B: Tensor
    targets_B: np.ndarray
    seen: list[np.ndarray]  # the full history of each
    pathways: dict[str, Tensor] | None = None  # what a model with pathways reads beside the items

    def encode(self, model: OneRec) -> Context:
        """The prompts' contexts under a model."""
        return model.encode(self.histories_BS, self.lengths_B, pathways=self.pathways)


@dataclass(frozen=True)
class Prompts:
    """All training events that have a history."""

    training: Histories
    rows: np.ndarray
    max_history_items: int
    pathways: WindowPathways | None = None

    @classmethod
    def of(cls, histories: Histories, max_history_items: int, pathways: WindowPathways | None = None) -> "Prompts":
        """The prompts in the training events of `histories`.

        Args:
            pathways: of the training events, for a model that reads any.

        Raises:
            DataError: no training event has another before it.
        """
        training = histories.training()
        is_first = np.zeros(training.num_events + 1, dtype=bool)
        is_first[training.offsets] = True
        rows = np.flatnonzero(~is_first[:-1])
        if not len(rows):
            raise DataError("prompts: found no training event with a history, expected at least one. Add data.")
        return cls(training, rows, max_history_items, pathways)

    def batch(self, rows_B: np.ndarray, device: torch.device) -> PromptBatch:
        """The prompts of these training rows."""
        seen = [np.asarray(self.training.before(int(row))) for row in rows_B]
        recent = [history[-self.max_history_items :] for history in seen]
        lengths_B = np.array([len(items) for items in recent])
        histories_BS = np.zeros((len(recent), lengths_B.max()), dtype=np.int64)
        histories_BS[np.arange(histories_BS.shape[1]) < lengths_B[:, None]] = np.concatenate(recent)
        pathways = None
        if self.pathways is not None:
            requests = [self.pathways.source.before(int(row)) for row in rows_B]  # which wish for no return
            inputs = self.pathways.reader.read(requests, lengths_B, histories_BS.shape[1])
            pathways = {name: tensor.to(device) for name, tensor in inputs.items()}
        return PromptBatch(
            rows_B=rows_B,
            histories_BS=torch.from_numpy(histories_BS).to(device),
            lengths_B=torch.from_numpy(lengths_B).to(device),
            targets_B=np.asarray(self.training.items[rows_B]).astype(np.int64),
            seen=seen,
            pathways=pathways,
        )


@dataclass(frozen=True)
class Rollout:
    """Items generated for each prompt."""

    items_BG: Tensor  # int64; where `present_BG` is False, the group's first item stands in
    present_BG: Tensor
    scores_BG: Tensor  # plain log-probabilities, by which samples are ranked
    behaviour_BG: Tensor | None = None  # log-probabilities as the objective takes them, where the policy moves on


@torch.no_grad()
def roll_out(
    model: OneRec, prompts: PromptBatch, trie: Trie, settings: RolloutSettings, generator: torch.Generator
) -> Rollout:
    """Generate a group of items for each prompt under the trie; the model should be in evaluation mode.

    Raises:
        DataError: a prompt for which no item is allowed.
    """
    excluded = prompts.seen if settings.exclude_seen else None
    context = prompts.encode(model)
    size, temperature = settings.group_size, settings.temperature
    if settings.kind == "beam":
        beams = beam_search(model, context, trie, size, size, excluded)
        # Beam search answers in inference mode, whose tensors autograd refuses.
        items_BG, scores_BG = beams.items_BK.clone(), beams.scores_BK.clone()
    elif settings.kind == "distinct":
        samples = sample_distinct_items(model, context, trie, size, generator, temperature, excluded)
        items_BG, scores_BG = samples.items_BG, samples.plain_log_probs_BG
    else:
        samples = sample_items(model, context, trie, size, generator, temperature, settings.top_p, excluded)
        items_BG, scores_BG = samples.items_BG, samples.plain_log_probs_BG
    present_BG = items_BG >= 0
    if not present_BG[:, 0].all():
        raise DataError(
            f"rollout: {int((~present_BG[:, 0]).sum())} prompts have every item of the catalogue in their history; "
            "expected one to generate. Set align.rollout.exclude_seen to false."
        )
    return Rollout(torch.where(present_BG, items_BG, items_BG[:, :1]), present_BG, scores_BG)
