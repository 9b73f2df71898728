"""Training of the QFormer: item-to-item contrast keeps to behaviour, captions keep to content.

OneRec technical report (arXiv 2506.13695, tokenizer). Departures and what our reading of the report leaves open:
1. The report reads 1280 token vectors a video from a vision-language model (miniCPM-V-8B), here they are those of a
   small text encoder and, where a checkpoint is given, of an image encoder; both stay frozen.
2. Captions are written by LLaMA3 there; here by a small decoder trained from scratch beside the QFormer. It is thrown
   away after training, and its vocabulary is the words that the catalogue's texts hold.
3. What is told from the vectors is the item's own text, cut at `caption_words`; the report's is the caption.
4. Assumed: an item's vector is its queries' vectors side by side, scaled to length 1 for the contrast.
5. Assumed: the two losses are added with `caption_weight`, the temperature is fixed, and pairs of both kinds are drawn
   evenly with replacement.
6. In a batch, a pair's negatives are the other pairs' second items, except those that are one of its own two items.

A stopped training goes on from the last state saved in the cache of vectors and ends in the same weights, since a
step's pairs follow from the seed and its number. Legend: P pairs, B pairs of a batch, I items of a batch, T tokens,
Q queries, D width, W words of a text, V words of the vocabulary.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from tokenizer.artifacts import atomic_file
from tokenizer.behaviour.networks import CaptionDecoder, QFormer
from tokenizer.behaviour.tokens import TEXT, Batch, ItemTokens
from tokenizer.config import BehaviourSettings, FrontTrainingSettings
from tokenizer.errors import ArtifactError


class LossRecord(BaseModel):
    """Mean losses of the steps since the record before."""

    step: int
    contrastive: float
    caption: float  # 0 without captions


class Captions:
    """Texts as numbers of one vocabulary: the words that occur in the catalogue."""

    def __init__(self, tokens: ItemTokens, max_words: int) -> None:
        self._text = tokens.kinds[TEXT]
        self._max_words = max_words
        self.vocabulary_V = np.unique(self._text.words_T[self._text.words_T >= 0])

    def batch(self, items_I: np.ndarray) -> tuple[Tensor, Tensor]:
        """Words int64 (I, W), padded by 0, and bool (I, W) where they are real."""
        texts = [np.searchsorted(self.vocabulary_V, self._text.words(item)[: self._max_words]) for item in items_I]
        words_IW = torch.zeros(len(texts), max(1, *(len(text) for text in texts)), dtype=torch.int64)
        real_IW = torch.zeros_like(words_IW, dtype=torch.bool)
        for row, text in enumerate(texts):
            words_IW[row, : len(text)] = torch.from_numpy(text)
            real_IW[row, : len(text)] = True
        return words_IW, real_IW


@dataclass
class Training:
    """Networks, optimizer and progress: all that a stopped training needs to go on."""

    networks: nn.ModuleDict
    optimizer: torch.optim.AdamW
    step: int
    records: list[LossRecord]

    @classmethod
    def start(cls, tokens: ItemTokens, num_words: int, settings: BehaviourSettings, seed: int) -> "Training":
        """Fresh networks; `num_words` 0 means no captions."""
        chosen, width, num_heads = settings.training, settings.width, settings.num_heads
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            qformer = QFormer(tokens.widths, width, settings.num_queries, settings.num_layers, num_heads)
            networks = nn.ModuleDict({"qformer": qformer})
            if num_words:
                decoder = CaptionDecoder(num_words, chosen.caption_words, width, chosen.caption_layers, num_heads)
                networks["captions"] = decoder
        return cls(networks, torch.optim.AdamW(networks.parameters(), lr=chosen.learning_rate), 0, [])

    def save(self, path: Path) -> None:
        """Write the state in the place of the last one."""
        state = {
            "step": self.step,
            "networks": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "records": [record.model_dump() for record in self.records],
        }
        with atomic_file(path) as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path) -> None:
        """Go on from what `save` wrote; raises ArtifactError where it is damaged."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.networks.load_state_dict(state["networks"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
            self.records = [LossRecord.model_validate(record) for record in state["records"]]
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, UnpicklingError) as error:
            raise ArtifactError(
                f"{path}: damaged state of the QFormer's training ({error}). Delete it and run again."
            ) from error


def train_qformer(
    tokens: ItemTokens, pairs_P2: np.ndarray, settings: BehaviourSettings, seed: int, device: str, state: Path | None
) -> tuple[QFormer, list[LossRecord]]:
    """The trained QFormer, frozen, and its losses.

    Args:
        pairs_P2: items to draw together; all of them have tokens.
        state: where the training is saved and taken up again; None saves nothing.

    Raises:
        ArtifactError: a damaged state.
    """
    chosen = settings.training
    captions = Captions(tokens, chosen.caption_words) if chosen.caption_weight > 0 else None
    training = Training.start(tokens, 0 if captions is None else len(captions.vocabulary_V), settings, seed)
    if state is not None and state.exists():
        training.restore(state)
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    training.networks.to(place)
    _move_moments(training.optimizer, place)
    sums = np.zeros(2)
    steps = tqdm(range(training.step, chosen.steps), desc="QFormer steps", initial=training.step, total=chosen.steps)
    for step in steps:
        pairs_B2 = pairs_P2[np.random.default_rng([seed, step]).integers(len(pairs_P2), size=chosen.batch_size)]
        sums += _step(training, tokens, pairs_B2, captions, chosen, place)
        if training.step % chosen.save_steps == 0 or training.step == chosen.steps:
            contrastive, caption = sums / ((training.step - 1) % chosen.save_steps + 1)
            training.records.append(LossRecord(step=training.step, contrastive=contrastive, caption=caption))
            steps.set_postfix(contrastive=f"{contrastive:.3f}", caption=f"{caption:.3f}")
            sums[:] = 0
            if state is not None:
                training.save(state)
    qformer = training.networks["qformer"].cpu().eval().requires_grad_(False)
    assert isinstance(qformer, QFormer)
    return qformer, training.records


def contrastive_loss(unit_B2D: Tensor, pairs_B2: Tensor, temperature: float) -> Tensor:
    """InfoNCE with in-batch negatives: mean of -log(exp(a_b . p_b / t) / sum over c of exp(a_b . p_c / t)).

    Args:
        unit_B2D: vectors of length 1 of each pair's two items, a and p.
        pairs_B2: the items themselves; a p_c that is a's or p's own item is no negative.
    """
    scores_BB = unit_B2D[:, 0] @ unit_B2D[:, 1].T / temperature
    own_BB = (pairs_B2[:, 1] == pairs_B2[:, :1]) | (pairs_B2[:, 1] == pairs_B2[:, 1:])
    own_BB = own_BB & ~torch.eye(len(own_BB), dtype=torch.bool, device=own_BB.device)
    labels_B = torch.arange(len(scores_BB), device=scores_BB.device)
    return functional.cross_entropy(scores_BB.masked_fill(own_BB, -math.inf), labels_B)


def caption_loss(logits_IWV: Tensor, words_IW: Tensor, real_IW: Tensor) -> Tensor:
    """Mean cross-entropy, nats, of the words that are real."""
    return functional.cross_entropy(logits_IWV[real_IW], words_IW[real_IW])


def learning_rate_share(step: int, settings: FrontTrainingSettings) -> float:
    """Share of the peak at a step from 0: a linear warm-up, then a linear fall to 0 after the last step."""
    warmup = (step + 1) / max(settings.warmup_steps, 1)
    return min(warmup, (settings.steps - step) / max(settings.steps - settings.warmup_steps, 1), 1.0)


def _step(
    training: Training,
    tokens: ItemTokens,
    pairs_B2: np.ndarray,
    captions: Captions | None,
    settings: FrontTrainingSettings,
    place: torch.device,
) -> np.ndarray:
    """One step of the optimizer; the contrastive and the caption loss before it."""
    items_I, place_B2 = np.unique(pairs_B2, return_inverse=True)
    vectors_IQD = training.networks["qformer"](on_device(tokens.batch(items_I), place))
    unit_ID = functional.normalize(vectors_IQD.flatten(1), dim=1)
    pairs, rows = torch.from_numpy(pairs_B2).to(place), torch.from_numpy(place_B2).to(place)
    contrastive = contrastive_loss(unit_ID[rows], pairs, settings.temperature)
    caption = contrastive.new_zeros(())
    if captions is not None:
        told_I = np.unique(pairs_B2[: settings.caption_items, 0])
        words_IW, real_IW = (part.to(place) for part in captions.batch(told_I))
        if real_IW.any():
            logits_IWV = training.networks["captions"](words_IW, vectors_IQD[np.searchsorted(items_I, told_I)])
            caption = caption_loss(logits_IWV, words_IW, real_IW)
    for group in training.optimizer.param_groups:
        group["lr"] = settings.learning_rate * learning_rate_share(training.step, settings)
    training.optimizer.zero_grad()
    (contrastive + settings.caption_weight * caption).backward()
    training.optimizer.step()
    training.step += 1
    return np.array([contrastive.item(), caption.item()])


def on_device(batch: dict[str, Batch], place: torch.device) -> dict[str, Batch]:
    """A batch of tokens on another device."""
    return {name: (vectors.to(place), real.to(place)) for name, (vectors, real) in batch.items()}


def _move_moments(optimizer: torch.optim.AdamW, place: torch.device) -> None:
    """A restored optimizer's moments follow its parameters."""
    for moments in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = moments[name].to(place)
