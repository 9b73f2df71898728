"""Token vectors of items: what the QFormer reads, one after another on disk, without padding.

A text's are the last hidden states of the text encoder, float16; they are made once per content and cached beside the
text vectors. Legend: N items, T tokens of all items together, B items of a batch, D width.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from tokenizer.artifacts import atomic_folder, hash_text
from tokenizer.behaviour.images import hash_images, image_states, read_images
from tokenizer.config import TokenizerSettings
from tokenizer.encoders import checkpoint_folder, hash_weights, item_texts, load_encoder, require_content
from tokenizer.errors import ArtifactError, ConfigError

TEXT, IMAGE = "text", "image"
NO_WORD = -1  # in place of a token that is no word of the text, such as the encoder's own opening and closing ones

Batch = tuple[torch.Tensor, torch.Tensor]  # vectors float32 (B, T, D), and bool (B, T) where they are real
Written = tuple[int, np.ndarray, np.ndarray]  # an item, its token vectors (T, D), its token numbers (T,)


@dataclass(frozen=True)
class TokenVectors:
    """Token vectors of one kind for N items.

    Args:
        key: identity of their content.
        starts_N: int64, an item's first row of `vectors_TD`.
        counts_N: int64, an item's rows; 0 where it has nothing of this kind.
        vectors_TD: float16, memory-mapped where there is a cache.
        words_T: int64 token numbers of the encoder, `NO_WORD` for images and for the encoder's own marks.
    """

    key: str
    starts_N: np.ndarray
    counts_N: np.ndarray
    vectors_TD: np.ndarray
    words_T: np.ndarray

    @property
    def width(self) -> int:
        """Width of a token's vector, D."""
        return int(self.vectors_TD.shape[1])

    def batch(self, items_B: np.ndarray) -> Batch:
        """Padded vectors of some items."""
        counts_B = torch.from_numpy(self.counts_N[items_B])
        real_BT = torch.arange(max(int(counts_B.max()), 1)) < counts_B[:, None]
        vectors_BTD = torch.zeros(*real_BT.shape, self.width)
        vectors_BTD[real_BT] = torch.from_numpy(self.vectors_TD[self._rows(items_B)].astype(np.float32))
        return vectors_BTD, real_BT

    def words(self, item: int) -> np.ndarray:
        """Token numbers of an item's words, in their order."""
        words = self.words_T[self.starts_N[item] : self.starts_N[item] + self.counts_N[item]]
        return words[words != NO_WORD]

    def _rows(self, items_B: np.ndarray) -> np.ndarray:
        counts_B = self.counts_N[items_B]
        ends_B = np.cumsum(counts_B)
        within = np.arange(ends_B[-1]) - np.repeat(ends_B - counts_B, counts_B)
        return np.repeat(self.starts_N[items_B], counts_B) + within


@dataclass(frozen=True)
class ItemTokens:
    """Token vectors of all kinds, by name."""

    kinds: dict[str, TokenVectors]

    @property
    def counts(self) -> np.ndarray:
        """int64 (N,): tokens of all kinds an item."""
        return np.sum([kind.counts_N for kind in self.kinds.values()], axis=0)

    @property
    def known(self) -> np.ndarray:
        """bool (N,): items with a token of any kind."""
        return self.counts > 0

    @property
    def widths(self) -> dict[str, int]:
        """Width of a token's vector, by kind."""
        return {name: kind.width for name, kind in self.kinds.items()}

    def batch(self, items_B: np.ndarray) -> dict[str, Batch]:
        """Padded vectors of some items, by kind."""
        return {name: kind.batch(items_B) for name, kind in self.kinds.items()}


def item_tokens(items: pl.DataFrame, settings: TokenizerSettings, schema_columns: Sequence[str]) -> ItemTokens:
    """Token vectors of the items' texts and, where the settings name an encoder, of their images.

    Raises:
        DataError: no text columns, an unknown column, an unreadable image, too many items with neither.
        ConfigError: an encoder that is no checkpoint or gives no token vectors.
        ArtifactError: a damaged cache.
    """
    kinds = {TEXT: _text_tokens(item_texts(items, settings.text, schema_columns), settings)}
    if settings.behaviour.images.encoder:
        kinds[IMAGE] = _image_tokens(items, settings)
    tokens = ItemTokens(kinds)
    require_content(tokens.known, "text in the text columns" + " and no image" * (IMAGE in kinds), settings.text)
    return tokens


def _text_tokens(texts: list[str], settings: TokenizerSettings) -> TokenVectors:
    checkpoint, limit = checkpoint_folder(settings.text.encoder), settings.behaviour.max_text_tokens
    key = hash_text(json.dumps([texts, hash_weights(checkpoint), limit]))[:32]
    return _cached(key, len(texts), settings.text.cache_folder, lambda: _text_states(texts, checkpoint, settings))


def _image_tokens(items: pl.DataFrame, settings: TokenizerSettings) -> TokenVectors:
    chosen = settings.behaviour.images
    images = read_images(items, chosen)
    identity = [hash_images(images), hash_weights(Path(chosen.encoder)), chosen.max_tokens]
    key = hash_text(json.dumps(identity))[:32]

    def written() -> Iterator[Written]:
        for item, states_TD in image_states(images, chosen, settings.text.device):
            yield item, states_TD, np.full(len(states_TD), NO_WORD)

    return _cached(key, len(items), settings.text.cache_folder, written)


def _text_states(texts: list[str], checkpoint: Path, settings: TokenizerSettings) -> Iterator[Written]:
    """Items with text, the longest first: little padding within a batch."""
    model = load_encoder(checkpoint, settings.text.device, settings.behaviour.max_text_tokens)
    marks = list(model.tokenizer.all_special_ids)
    order = sorted((item for item, text in enumerate(texts) if text), key=lambda item: -len(texts[item]))
    with tqdm(total=len(order), desc="token vectors of texts", unit="text", disable=None) as progress:
        for start in range(0, len(order), settings.text.batch_size):
            part = order[start : start + settings.text.batch_size]
            features: Any = model.encode([texts[item] for item in part], output_value=None, show_progress_bar=False)
            for item, of_item in zip(part, features, strict=True):
                if "token_embeddings" not in of_item:
                    raise ConfigError(
                        f"tokenizer.text.encoder: {checkpoint} gives no token vectors, only whole texts'."
                    )
                real_T = of_item["attention_mask"].bool()
                words_T = of_item["input_ids"][real_T].cpu().numpy().astype(np.int64)
                words_T[np.isin(words_T, marks)] = NO_WORD
                yield item, of_item["token_embeddings"][real_T].float().cpu().numpy(), words_T
            progress.update(len(part))


def _cached(key: str, num_items: int, cache_folder: str, states: Callable[[], Iterable[Written]]) -> TokenVectors:
    """Vectors from the cache, which is filled first where it lacks them; in memory where there is none."""
    if not cache_folder:
        buffer = io.BytesIO()
        layout = _write(states(), num_items, buffer)
        return _assemble(key, layout, np.frombuffer(buffer.getbuffer(), dtype=np.float16))
    folder = Path(cache_folder) / f"{key}.tokens"
    if not folder.is_dir():
        with atomic_folder(folder) as temporary, (temporary / "vectors.f16").open("wb") as file:
            np.save(temporary / "layout.npy", _write(states(), num_items, file))
    try:
        layout = np.load(folder / "layout.npy", allow_pickle=False)
        size = (folder / "vectors.f16").stat().st_size // 2
        flat = np.memmap(folder / "vectors.f16", np.float16, "r") if size else np.zeros(0, np.float16)
        return _assemble(key, layout, flat)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: damaged cache of token vectors ({error}). Delete it and run again.") from error


def _write(states: Iterable[Written], num_items: int, file: BinaryIO) -> np.ndarray:
    """Append the vectors to `file`; their layout: width, starts (N), counts (N), words (T), one after another."""
    starts_N, counts_N = np.zeros(num_items, dtype=np.int64), np.zeros(num_items, dtype=np.int64)
    words, num_written, width = [np.zeros(0, dtype=np.int64)], 0, 1
    for item, vectors_TD, words_T in states:
        starts_N[item], counts_N[item] = num_written, len(vectors_TD)
        file.write(np.ascontiguousarray(vectors_TD, dtype=np.float16).tobytes())
        words.append(words_T)
        num_written += len(vectors_TD)
        width = vectors_TD.shape[1]
    return np.concatenate([[width, num_items], starts_N, counts_N, *words])


def _assemble(key: str, layout: np.ndarray, flat: np.ndarray) -> TokenVectors:
    width, num_items = int(layout[0]), int(layout[1])
    starts_N, counts_N, words_T = np.split(layout[2:], [num_items, 2 * num_items])
    return TokenVectors(key, starts_N, counts_N, flat.reshape(len(words_T), width), words_T)
