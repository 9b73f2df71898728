"""The ID table: item <-> semantic ID, strict both ways, tied to its catalogue by a hash.

Legend: N items, L code levels (the suffix level included).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from tokenizer.artifacts import hash_arrays, hash_text, require_same_hash, write_json
from tokenizer.config import MAX_CODE_SPACE
from tokenizer.errors import ArtifactError, DataError

_FACTS = "table.json"


@dataclass(frozen=True)
class SemanticIdTable:
    """Semantic IDs of a catalogue; row k belongs to item index k.

    Args:
        codes_NL: int32 codes; a suffix level is a level like the others.
        codes_per_level: number of codes each level may hold.
        item_ids: the user's own keys.
        bucket_rank_N: int32 rank of an item among those of equal codes; all 0 where IDs are unique.

    Raises:
        DataError: shapes that disagree, codes out of range, an item id given twice, two items of one rank in a bucket.
    """

    codes_NL: np.ndarray
    codes_per_level: tuple[int, ...]
    item_ids: list[str]
    bucket_rank_N: np.ndarray

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_unique(self)

    @classmethod
    def of_unique(
        cls, codes_NL: np.ndarray, codes_per_level: Sequence[int], item_ids: Iterable[str]
    ) -> "SemanticIdTable":
        """A table in which no two items share their codes."""
        codes = np.ascontiguousarray(codes_NL, dtype=np.int32)
        return cls(codes, tuple(codes_per_level), list(item_ids), np.zeros(len(codes), dtype=np.int32))

    @property
    def num_items(self) -> int:
        """Number of items, N."""
        return len(self.item_ids)

    @property
    def num_levels(self) -> int:
        """Number of codes an item, L."""
        return len(self.codes_per_level)

    @cached_property
    def catalogue_hash(self) -> str:
        """Identity of the catalogue: its item ids in order."""
        return hash_item_ids(self.item_ids)

    @cached_property
    def content_hash(self) -> str:
        """Identity of the table: catalogue, levels, codes and ranks."""
        arrays = hash_arrays(self.codes_NL, self.bucket_rank_N)
        return hash_text(json.dumps([self.catalogue_hash, self.codes_per_level, arrays]))

    def index_of(self, item_id: str) -> int:
        """Item index of an item id.

        Raises:
            DataError: the id is not in the catalogue.
        """
        index = self._index_of_id.get(item_id)
        if index is None:
            raise self._unknown(item_id)
        return index

    def indices_of(self, item_ids: Sequence[str]) -> np.ndarray:
        """Item indices (int64) of many item ids; raises DataError for one that is not in the catalogue."""
        try:
            return np.fromiter(map(self._index_of_id.__getitem__, item_ids), dtype=np.int64, count=len(item_ids))
        except KeyError as error:
            raise self._unknown(error.args[0]) from None

    def codes_of(self, item_id: str) -> tuple[int, ...]:
        """Semantic ID of an item id; raises DataError for an id that is not in the catalogue."""
        return tuple(int(code) for code in self.codes_NL[self.index_of(item_id)])

    def items_with(self, codes: Sequence[int]) -> list[int]:
        """Item indices of a semantic ID, by their rank in the bucket.

        Raises:
            DataError: a wrong number of codes, or a semantic ID that no item has.
        """
        if len(codes) != self.num_levels:
            raise DataError(f"semantic ID {tuple(codes)}: found {len(codes)} codes, expected {self.num_levels}.")
        in_range = all(0 <= code < size for code, size in zip(codes, self.codes_per_level, strict=True))
        keys, order = self._sorted_keys
        key = int(pack_codes(np.asarray([codes], dtype=np.int64), self.codes_per_level)[0]) if in_range else -1
        first, last = np.searchsorted(keys, [key, key + 1])
        if first == last:
            raise DataError(f"semantic ID {tuple(codes)}: no item of this ID table has it.")
        return [int(index) for index in order[first:last]]

    def save(self, folder: Path) -> None:
        """Write the table's files into `folder` (an artefact being built)."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "codes.npy", self.codes_NL)
        np.save(folder / "bucket_rank.npy", self.bucket_rank_N)
        pl.DataFrame({"item_id": self.item_ids}, schema={"item_id": pl.String}).write_parquet(
            folder / "item_ids.parquet"
        )
        facts = {
            "num_items": self.num_items,
            "codes_per_level": list(self.codes_per_level),
            "catalogue_hash": self.catalogue_hash,
            "content_hash": self.content_hash,
        }
        write_json(folder / _FACTS, facts)

    @classmethod
    def load(cls, folder: Path, item_ids: Iterable[str] | None = None) -> "SemanticIdTable":
        """Read a table and check it against its stored hash and, where given, against a catalogue's item ids.

        Raises:
            ArtifactError: missing or changed files, or the table of another catalogue (both hashes shown).
        """
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            codes_NL = np.load(folder / "codes.npy", allow_pickle=False)
            bucket_rank_N = np.load(folder / "bucket_rank.npy", allow_pickle=False)
            stored_ids = pl.read_parquet(folder / "item_ids.parquet")["item_id"].to_list()
            table = cls(codes_NL, tuple(facts["codes_per_level"]), stored_ids, bucket_rank_N)
        except (OSError, ValueError, KeyError, pl.exceptions.PolarsError, DataError) as error:
            raise ArtifactError(f"{folder}: not a readable ID table ({error}). Fit the tokenizer again.") from error
        require_same_hash(f"ID table {folder}", table.content_hash, facts["content_hash"], "Fit the tokenizer again.")
        if item_ids is not None:
            table.require_catalogue(item_ids, str(folder))
        return table

    def require_catalogue(self, item_ids: Iterable[str], origin: str) -> None:
        """Raise ArtifactError, with both hashes, unless `item_ids` are this table's items in this order."""
        require_same_hash(
            f"ID table {origin}: it belongs to another catalogue; item ids",
            self.catalogue_hash,
            hash_item_ids(item_ids),
            "Fit the tokenizer on this data, or assign the new items (python -m tokenizer assign).",
        )

    def _unknown(self, item_id: str) -> DataError:
        return DataError(
            f"item id {item_id!r}: not among the {self.num_items} items of this ID table. "
            "Assign it first (python -m tokenizer assign)."
        )

    @cached_property
    def _index_of_id(self) -> dict[str, int]:
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    @cached_property
    def _sorted_keys(self) -> tuple[np.ndarray, np.ndarray]:
        keys = pack_codes(self.codes_NL, self.codes_per_level)
        order = np.lexsort((self.bucket_rank_N, keys))
        return keys[order], order


def pack_codes(codes_NL: np.ndarray, codes_per_level: Sequence[int]) -> np.ndarray:
    """One int64 key a row; equal keys mean equal codes, and keys sort as codes do."""
    keys = np.zeros(len(codes_NL), dtype=np.int64)
    for level, size in enumerate(codes_per_level):
        keys *= size
        keys += codes_NL[:, level]
    return keys


def hash_item_ids(item_ids: Iterable[str]) -> str:
    """SHA-256 of item ids in order."""
    digest = hashlib.sha256()
    for item_id in item_ids:
        encoded = str(item_id).encode("utf-8")
        digest.update(f"{len(encoded)}:".encode())
        digest.update(encoded)
    return digest.hexdigest()


def _check_shapes(table: SemanticIdTable) -> None:
    if math.prod(table.codes_per_level) > MAX_CODE_SPACE:
        raise DataError(
            f"codes per level: the product of {table.codes_per_level} exceeds {MAX_CODE_SPACE}; "
            "semantic IDs are packed into 64 bits. Use fewer or smaller levels."
        )
    expected = (table.num_items, table.num_levels)
    if table.codes_NL.shape != expected or table.codes_NL.dtype != np.int32:
        raise DataError(
            f"codes: found {table.codes_NL.dtype} of shape {table.codes_NL.shape}, expected int32 of shape {expected}."
        )
    if table.bucket_rank_N.shape != (table.num_items,) or table.bucket_rank_N.dtype != np.int32:
        raise DataError(
            f"bucket ranks: found {table.bucket_rank_N.dtype} of shape {table.bucket_rank_N.shape}, "
            f"expected int32 of shape {(table.num_items,)}."
        )
    for level, size in enumerate(table.codes_per_level):
        wrong = np.flatnonzero((table.codes_NL[:, level] < 0) | (table.codes_NL[:, level] >= size))
        if len(wrong):
            code = table.codes_NL[wrong[0], level]
            raise DataError(
                f"codes: {len(wrong)} of level {level} lie outside 0..{size - 1}; the first is {code}, row {wrong[0]}."
            )


def _check_unique(table: SemanticIdTable) -> None:
    if len(table._index_of_id) != table.num_items:
        repeated = table.num_items - len(table._index_of_id)
        raise DataError(f"item ids: {repeated} of {table.num_items} are repeats; every item needs its own id.")
    keys, order = table._sorted_keys
    ranks = table.bucket_rank_N[order]
    clash = np.flatnonzero((keys[1:] == keys[:-1]) & (ranks[1:] == ranks[:-1]))
    if len(clash):
        first, second = order[clash[0]], order[clash[0] + 1]
        raise DataError(
            f"codes: {len(clash)} items share codes and rank with another, the first are rows {first} and {second}. "
            "Use a collision policy."
        )
