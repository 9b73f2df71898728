"""Variable-length pieces of semantic IDs, learnt by SentencePiece on what users met: an item embedding's vocabulary.

After YouTube's "Better Generalization with Semantic IDs" (Singh et al. 2024, arXiv 2306.08121): an item's
codes are a word, the training events its corpus, and a SentencePiece model cuts every word into pieces. Often-met items
get long pieces of their own, rare and new ones share the short pieces of their prefixes. Departures:

1. A word's weight is its number of training events plus one, so that items without any are cut sensibly too.
2. Every single code is a word of weight one, hence a piece: no ID, of a new item either, has an unknown part.

Legend: N items, L code levels, P pieces of all items together.
"""

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import sentencepiece

from tokenizer.errors import ArtifactError, ConfigError, DataError

PieceModel = Literal["unigram", "bpe"]

_FIRST_CHARACTER = 0xF0000  # Unicode's private planes 15 and 16: no character there is normalised, split or joined
_NUM_CHARACTERS = 2 * 65534
_NUM_CONTROL_PIECES = 1  # the unknown piece, which SentencePiece insists on


@dataclass(frozen=True)
class ItemPieces:
    """The pieces of every item, one after the other.

    Args:
        pieces_P: int32 piece numbers, in 0..vocabulary_size - 1.
        offsets: int64 (N + 1,); the pieces of item k are pieces_P[offsets[k]:offsets[k + 1]].
    """

    pieces_P: np.ndarray
    offsets: np.ndarray


class SemanticIdPieces:
    """A trained SentencePiece model over the semantic IDs of one tokenizer."""

    def __init__(self, model: bytes, codes_per_level: Sequence[int]) -> None:
        self.codes_per_level = tuple(codes_per_level)
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def fit(
        cls,
        codes_NL: np.ndarray,
        codes_per_level: Sequence[int],
        num_events_N: np.ndarray,
        vocabulary_size: int,
        model: PieceModel = "unigram",
    ) -> "SemanticIdPieces":
        """Learn the pieces.

        Args:
            codes_NL: semantic IDs of the catalogue.
            num_events_N: training events of each item.
            vocabulary_size: pieces at most; there are fewer where the IDs have no more repeated parts.
            model: how pieces are chosen; the paper's is "unigram".

        Raises:
            ConfigError: a vocabulary without room for every single code, or more codes than there are characters.
            DataError: codes and event counts of different catalogues, or codes out of range.
        """
        num_codes = sum(codes_per_level)
        if not num_codes < vocabulary_size:
            raise ConfigError(
                f"pieces: found a vocabulary of {vocabulary_size}, expected more than the {num_codes} codes of all "
                "levels, each of which is a piece. Raise the vocabulary size."
            )
        if num_codes > _NUM_CHARACTERS:
            raise ConfigError(f"pieces: found {num_codes} codes over all levels, expected at most {_NUM_CHARACTERS}.")
        if len(codes_NL) != len(num_events_N):
            raise DataError(
                f"pieces: found {len(codes_NL)} semantic IDs and {len(num_events_N)} event counts, expected one count "
                "an item. Take both from the same catalogue."
            )
        words = _to_words(codes_NL, codes_per_level)
        trained = _train(words, num_events_N + 1, _alphabet(codes_per_level), vocabulary_size, model, len(codes_NL[0]))
        return cls(trained, codes_per_level)

    @classmethod
    def load(cls, path: Path, codes_per_level: Sequence[int]) -> "SemanticIdPieces":
        """Read a model that `save` wrote.

        Raises:
            ArtifactError: the file cannot be read, or is of a tokenizer with other levels.
        """
        try:
            pieces = cls(path.read_bytes(), codes_per_level)
        except (OSError, RuntimeError) as error:
            raise ArtifactError(f"{path}: no SentencePiece model ({error}). Fit the pieces again.") from error
        alphabet = _alphabet(codes_per_level)
        known = {pieces._processor.id_to_piece(number) for number in range(pieces._processor.get_piece_size())}
        if missing := sum(character not in known for character in alphabet):
            raise ArtifactError(
                f"{path}: {missing} of {len(alphabet)} codes are no pieces of it; it was fitted for other levels than "
                f"{list(codes_per_level)}. Use the pieces of this tokenizer."
            )
        return pieces

    def save(self, path: Path) -> None:
        """Write the model in SentencePiece's own format."""
        path.write_bytes(self._model)

    @property
    def vocabulary_size(self) -> int:
        """Number of pieces, rows of an embedding table for them."""
        return int(self._processor.get_piece_size()) - _NUM_CONTROL_PIECES

    def encode(self, codes_NL: np.ndarray) -> ItemPieces:
        """Cut semantic IDs, of old or new items, into pieces.

        Raises:
            DataError: codes out of range.
        """
        words = _to_words(codes_NL, self.codes_per_level)
        pieces = [np.asarray(row, dtype=np.int32) - _NUM_CONTROL_PIECES for row in self._processor.encode(words)]
        lengths = [len(row) for row in pieces]
        flat = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)
        return ItemPieces(flat, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    def codes_of_piece(self, piece: int) -> tuple[tuple[int, int], ...]:
        """(level, code) of each code that a piece stands for."""
        ends = np.cumsum(self.codes_per_level)
        numbers = [_number(character) for character in self._processor.id_to_piece(piece + _NUM_CONTROL_PIECES)]
        levels = np.searchsorted(ends, numbers, side="right").tolist()
        return tuple(
            (level, number - int(ends[level]) + self.codes_per_level[level])
            for level, number in zip(levels, numbers, strict=True)
        )


def _alphabet(codes_per_level: Sequence[int]) -> str:
    return "".join(_character(number) for number in range(sum(codes_per_level)))


def _character(number: int) -> str:
    """One character for each code of each level; the two last places of a plane are no characters."""
    return chr(_FIRST_CHARACTER + number + 2 * (number // 65534))


def _number(character: str) -> int:
    place = ord(character) - _FIRST_CHARACTER
    return place - 2 * (place // 65536)


def _to_words(codes_NL: np.ndarray, codes_per_level: Sequence[int]) -> list[str]:
    sizes = np.asarray(codes_per_level)
    if codes_NL.ndim != 2 or codes_NL.shape[1] != len(sizes):
        raise DataError(
            f"pieces: found codes of shape {codes_NL.shape}, expected {len(sizes)} a row, one for each of the levels "
            f"{sizes.tolist()}."
        )
    outside_NL = (codes_NL < 0) | (codes_NL >= sizes)
    if outside_NL.any():
        item, level = np.argwhere(outside_NL)[0]
        raise DataError(
            f"pieces: {int(outside_NL.sum())} codes are out of range; first: row {item}, level {level}, found "
            f"{codes_NL[item, level]}, expected 0 to {sizes[level] - 1}."
        )
    alphabet = np.array(list(_alphabet(codes_per_level)))
    first_of_level = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return ["".join(row) for row in alphabet[codes_NL + first_of_level].tolist()]


def _train(
    words: Sequence[str], weights_N: np.ndarray, alphabet: str, vocabulary_size: int, model: PieceModel, max_length: int
) -> bytes:
    """SentencePiece's trainer on weighted words; it reads weights and candidates from files only."""
    trained = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        corpus, candidates = Path(folder) / "words.tsv", Path(folder) / "candidates.tsv"
        weighted = pl.DataFrame({"word": words, "weight": weights_N})
        singles = pl.DataFrame({"word": list(alphabet), "weight": np.ones(len(alphabet), dtype=weights_N.dtype)})
        pl.concat([weighted, singles]).write_csv(corpus, separator="\t", include_header=False)
        _candidates(weighted, singles, max_length).write_csv(candidates, separator="\t", include_header=False)
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus),
            input_format="tsv",
            seed_sentencepieces_file=str(candidates) if model == "unigram" else "",
            model_writer=trained,
            model_type=model,
            vocab_size=vocabulary_size + _NUM_CONTROL_PIECES,
            hard_vocab_limit=False,
            character_coverage=1.0,
            max_sentencepiece_length=max_length,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_unicode_script=False,
            split_by_number=False,
            split_by_whitespace=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    return trained.getvalue()


def _candidates(weighted: pl.DataFrame, singles: pl.DataFrame, max_length: int) -> pl.DataFrame:
    """Every code, every run of codes that is met twice, and their weights.

    SentencePiece's own search goes by bytes and misses a run whose continuations begin with the same byte, as those in
    one of Unicode's private planes all do.
    """
    runs = [
        weighted.select(piece=pl.col("word").str.slice(start, length), weight="weight")
        for length in range(2, max_length + 1)
        for start in range(max_length - length + 1)
    ]
    counted = pl.concat(runs).group_by("piece").agg(pl.col("weight").sum()).filter(pl.col("weight") > 1)
    return pl.concat([singles.rename({"word": "piece"}), counted]).sort("weight", "piece", descending=True)
