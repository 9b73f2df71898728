"""TIGER (Rajput et al., NeurIPS 2023, arXiv 2305.05065): transformers' T5 over the flat codes of a history.

The honest rival: nothing here is ours but the batches and the trie behind `prefix_allowed_tokens_fn`. The encoder reads
the last 20 items as 20 * L code tokens, the decoder writes the L codes of the next item, and every prefix of a user's
training events is a sample of its own.

Departures from the paper:
1. Codes come from this project's tokenizer, with its collision policy, instead of the paper's RQ-VAE.
2. No user token: whoever evaluates hands over histories, not users. The paper hashes users into 2,000 tokens.
3. AdamW with linear warm-up and decay, instead of a rate of 0.01 with inverse square root decay; the number of steps
   is a setting, 200,000 in the paper.
4. Beam search is constrained to real items; the paper lets invalid ones be and reports how few there are.

Shapes: B batch, T tokens of a history, L code levels, N items, K places of a list.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm
from transformers import T5Config, T5ForConditionalGeneration, get_linear_schedule_with_warmup

from onerec.data.histories import Histories
from onerec.evaluation.recommender import NO_ITEM, Ranking
from tokenizer.settings import Settings
from tokenizer.table import SemanticIdTable

PAD, END = 0, 1
_FIRST_CODE = 2
# generate() starts all beams but the first at -1e9: what still scores so low never left a dead beam.
_DEAD_BEAM_SCORE = -1e8


class TigerSettings(Settings):
    """Shape, training and decoding of the T5 baseline; shapes are the paper's (section 4, implementation details)."""

    num_layers: int = Field(4, ge=1, description="Layers of the encoder and of the decoder (paper: 4).")
    width: int = Field(128, ge=1, description="Model width (paper: 128).")
    num_heads: int = Field(6, ge=1, description="Attention heads (paper: 6).")
    head_width: int = Field(64, ge=1, description="Width of a head (paper: 64).")
    feed_forward_width: int = Field(1024, ge=1, description="Inner width of the feed-forward (paper: 1024).")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout (paper: 0.1).")
    max_history_items: int = Field(20, ge=1, description="Latest items of a history that are read (paper: 20).")
    batch_size: int = Field(256, ge=1, description="Samples a step (paper: 256).")
    num_steps: int = Field(2000, ge=1, description="Training steps (paper: 200,000).")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW.")
    warmup_steps: int = Field(200, ge=0, description="Steps of linear warm-up, decay to zero after (paper: 10,000).")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")
    num_beams: int = Field(50, ge=1, description="Beams, raised to the length of the list asked for.")
    decoding_batch_size: int = Field(32, ge=1, description="Histories decoded at a time.")
    seed: int = Field(0, ge=0, description="Of weights, dropout and the order of samples; the run's is added.")


class FlatCodes:
    """Items as runs of L tokens of one flat vocabulary: pad 0, end 1, then the codes of level 0, of level 1, ..."""

    def __init__(self, table: SemanticIdTable) -> None:
        first_of_level = _FIRST_CODE + np.concatenate([[0], np.cumsum(table.codes_per_level)[:-1]])
        self.num_levels = table.num_levels
        self.vocabulary_size = _FIRST_CODE + sum(table.codes_per_level)
        self.tokens_NL = table.codes_NL.astype(np.int64) + first_of_level

    def encode(self, histories: Sequence[np.ndarray], max_items: int) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (B, T): the latest items' tokens and an end token, padded on the right."""
        recent = [np.asarray(history[-max_items:]) for history in histories]
        lengths = np.array([len(items) * self.num_levels + 1 for items in recent])
        input_ids_BT = np.full((len(recent), lengths.max()), PAD)
        for row, items in enumerate(recent):
            input_ids_BT[row, : lengths[row] - 1] = self.tokens_NL[items].ravel()
            input_ids_BT[row, lengths[row] - 1] = END
        mask_BT = np.arange(lengths.max()) < lengths[:, None]
        return {"input_ids": torch.from_numpy(input_ids_BT), "attention_mask": torch.from_numpy(mask_BT).long()}


class ItemTrie:
    """The token runs that are items, as Python dictionaries, in the form that `prefix_allowed_tokens_fn` asks for."""

    def __init__(self, tokens_NL: np.ndarray, bucket_rank_N: np.ndarray) -> None:
        self.items: dict[tuple[int, ...], list[int]] = {}
        for item in np.argsort(bucket_rank_N, kind="stable").tolist():
            self.items.setdefault(tuple(tokens_NL[item].tolist()), []).append(item)
        self._tokens_NL = tokens_NL
        self._num_items_under = self._count_under(range(len(tokens_NL)))
        children: dict[tuple[int, ...], list[int]] = {}
        for prefix in self._num_items_under:
            if prefix:
                children.setdefault(prefix[:-1], []).append(prefix[-1])
        self._children = {prefix: sorted(tokens) for prefix, tokens in children.items()}

    def constraint(self, excluded: Sequence[set[int]]) -> Callable[[int, Tensor], list[int]]:
        """A `prefix_allowed_tokens_fn` for a batch; `excluded` holds the items that each row may not generate."""
        excluded_under = [self._count_under(items) for items in excluded]

        def allowed_tokens(row: int, written: Tensor) -> list[int]:
            prefix = tuple(written[1:].tolist())  # what follows the decoder's start token
            tokens = self._children.get(prefix, [])
            if excluded_under[row].get(prefix):
                extended = ((*prefix, token) for token in tokens)
                tokens = [run[-1] for run in extended if excluded_under[row][run] < self._num_items_under[run]]
            # An empty list is an error to generate(); a padded run is no item and is dropped afterwards.
            return tokens or [PAD]

        return allowed_tokens

    def _count_under(self, items: Sequence[int] | set[int] | range) -> Counter[tuple[int, ...]]:
        runs = (tuple(self._tokens_NL[item].tolist()) for item in items)
        return Counter(run[:length] for run in runs for length in range(len(run) + 1))


class Tiger:
    """T5 that writes the codes of the next item."""

    name = "tiger"

    def __init__(self, model: T5ForConditionalGeneration, table: SemanticIdTable, settings: TigerSettings) -> None:
        self.model = model.eval()
        self.settings = settings
        self.codes = FlatCodes(table)
        self.trie = ItemTrie(self.codes.tokens_NL, table.bucket_rank_N)

    @classmethod
    def fit(
        cls, histories: Histories, table: SemanticIdTable, settings: TigerSettings, show_progress: bool = True
    ) -> Self:
        """Train on every prefix of the training events."""
        torch.manual_seed(settings.seed)
        samples = PrefixSamples(histories.training(), table, settings.max_history_items)
        model = build_t5(samples.codes, settings).train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        schedule = get_linear_schedule_with_warmup(optimizer, settings.warmup_steps, settings.num_steps)
        progress = tqdm(total=settings.num_steps, desc="train tiger", unit="step", disable=not show_progress)
        with progress:
            for rows in samples.batches(settings.batch_size, settings.num_steps, settings.seed):
                loss = model(**samples.collate(rows)).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        return cls(model, table, settings)

    @property
    def num_parameters(self) -> int:
        """Trained numbers, the embedding shared by encoder, decoder and head counted once."""
        return self.model.num_parameters()

    @torch.inference_mode()
    def recommend(self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool) -> Ranking:
        items_BK = np.full((len(histories), k), NO_ITEM, dtype=np.int32)
        scores_BK = np.full((len(histories), k), -np.inf, dtype=np.float32)
        for start in range(0, len(histories), self.settings.decoding_batch_size):
            batch = histories[start : start + self.settings.decoding_batch_size]
            excluded = [set(history.tolist()) if exclude_seen else set() for history in batch]
            runs_BWL, scores_BW = self._generate(batch, k, excluded)
            for row in range(len(batch)):
                found = self._items_of(runs_BWL[row], scores_BW[row], excluded[row])[:k]
                items_BK[start + row, : len(found)] = [item for item, _ in found]
                scores_BK[start + row, : len(found)] = [score for _, score in found]
        return Ranking(items_BK=items_BK, scores_BK=scores_BK)

    def _generate(
        self, histories: Sequence[np.ndarray], k: int, excluded: Sequence[set[int]]
    ) -> tuple[list[list[list[int]]], list[list[float]]]:
        num_beams = max(self.settings.num_beams, k)
        output = self.model.generate(
            **self.codes.encode(histories, self.settings.max_history_items),
            **search_arguments(num_beams, self.codes.num_levels),
            prefix_allowed_tokens_fn=self.trie.constraint(excluded),
            return_dict_in_generate=True,
            output_scores=True,
        )
        shape = (len(histories), num_beams)
        runs_BWL = output.sequences[:, 1:].reshape(*shape, -1).tolist()
        return runs_BWL, output.sequences_scores.reshape(shape).tolist()

    def _items_of(
        self, runs: Sequence[Sequence[int]], scores: Sequence[float], excluded: set[int]
    ) -> list[tuple[int, float]]:
        """Items and scores of the beams that are items, best first; one semantic ID's items in their bucket's order."""
        return [
            (item, score)
            for run, score in zip(runs, scores, strict=True)
            if score > _DEAD_BEAM_SCORE
            for item in self.trie.items.get(tuple(run), [])
            if item not in excluded
        ]


class PrefixSamples:
    """Every training event with something before it, as a sample of its own."""

    def __init__(self, training: Histories, table: SemanticIdTable, max_history_items: int) -> None:
        self.codes = FlatCodes(table)
        self.max_history_items = max_history_items
        self._items = np.asarray(training.items)
        rows = np.arange(training.num_events)
        starts = training.offsets[training.users_of(rows)]
        self._target_rows = rows[rows > starts]
        self._starts = np.maximum(starts[rows > starts], self._target_rows - max_history_items)

    def __len__(self) -> int:
        return len(self._target_rows)

    def batches(self, batch_size: int, num_batches: int, seed: int) -> list[np.ndarray]:
        """Sample numbers of each batch: passes in a random order each, one flowing into the next."""
        rng = np.random.default_rng(seed)
        num_drawn = batch_size * num_batches
        num_passes = -(-num_drawn // len(self))
        order = np.concatenate([rng.permutation(len(self)) for _ in range(num_passes)])[:num_drawn]
        return list(order.reshape(num_batches, batch_size))

    def collate(self, samples: np.ndarray) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` (B, T) and `labels` (B, L)."""
        targets_B, starts_B = self._target_rows[samples], self._starts[samples]
        histories = [self._items[start:stop] for start, stop in zip(starts_B, targets_B, strict=True)]
        labels_BL = self.codes.tokens_NL[self._items[targets_B]]
        return {**self.codes.encode(histories, self.max_history_items), "labels": torch.from_numpy(labels_BL)}


def build_t5(codes: FlatCodes, settings: TigerSettings) -> T5ForConditionalGeneration:
    """An untrained T5 of the settings' shape over the flat vocabulary."""
    config = T5Config(
        vocab_size=codes.vocabulary_size,
        d_model=settings.width,
        d_kv=settings.head_width,
        d_ff=settings.feed_forward_width,
        num_layers=settings.num_layers,
        num_decoder_layers=settings.num_layers,
        num_heads=settings.num_heads,
        dropout_rate=settings.dropout,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,  # type: ignore[call-arg]  # taken, though T5Config does not declare it
    )
    return T5ForConditionalGeneration(config)


def search_arguments(num_beams: int, num_levels: int) -> dict[str, Any]:
    """What `generate` is told to return every beam of runs that are `num_levels` tokens long, scored by their sum."""
    return {
        "num_beams": num_beams,
        "num_return_sequences": num_beams,
        "min_new_tokens": num_levels,
        "max_new_tokens": num_levels,
        "length_penalty": 0.0,
        "do_sample": False,
    }
