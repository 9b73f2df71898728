"""The catalogue at one moment: the bundle's items and those that joined since, less those that were taken out.

A `Catalogue` never changes; a change makes the next one, which shares what stayed the same. A search keeps the one that
it began with, so that nothing stops while the catalogue changes. Item indices are never given again: an item that is
taken out keeps its row, its semantic ID and its place in histories, and only leaves the tree of what may be returned.

Shapes: N items, the removed ones included, M new ones, L code levels.
"""

import copy
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import polars as pl

from onerec.bundle import Bundle, build_trie
from onerec.data.titles import item_titles
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.trie import Trie
from onerec.errors import DataError, ServingError
from onerec.model.precision import Precision
from onerec.serving.changes import FieldValue, ItemChange
from onerec.serving.filters import Filter
from onerec.serving.item_rows import with_items
from onerec.serving.schema import CatalogueItem
from tokenizer.table import SemanticIdTable

_ID = "item_id"
_MAX_FILTERS = 16  # whose trees are kept
_MAX_ADDED = 10_000  # items that join a tree before it is built again


class CannotPlaceError(ServingError):
    """A new item for a bundle that was written without the means to place it."""


@dataclass(frozen=True)
class Catalogue:
    """Items by index, and the recommender that knows exactly these."""

    bundle: Bundle
    table: SemanticIdTable
    items: pl.DataFrame
    removed_N: np.ndarray
    recommender: OneRecRecommender
    _filtered: dict[Filter, OneRecRecommender | None] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle, precision: Precision | None = None) -> "Catalogue":
        """The bundle's own items; its model is kept in the precision of decoding alone, the bundle's where None."""
        nothing, recommender = np.zeros(bundle.table.num_items, dtype=bool), bundle.recommender(precision=precision)
        bundle = replace(bundle, model=recommender.model)
        return cls(bundle, bundle.table, bundle.items, nothing, recommender)

    def find(self, item_id: str) -> int | None:
        """Index of an item, a removed one too; None for one that never was here."""
        try:
            return self.table.index_of(item_id)
        except DataError:
            return None

    @cached_property
    def ids(self) -> list[str | int]:
        """The user's own keys, of the type they have in the bundle."""
        return self.items[_ID].to_list()

    @cached_property
    def titles(self) -> list[str]:
        """What to call each item."""
        return item_titles(self.items, self.bundle.manifest.details["text_columns"])

    @property
    def num_available(self) -> int:
        """Items that may be returned."""
        return int((~self.removed_N).sum())

    def is_removed(self, item_id: str) -> bool:
        """Whether it was here and may not be returned any more."""
        index = self.find(item_id)
        return index is not None and bool(self.removed_N[index])

    def view(self, index: int) -> CatalogueItem:
        """An item as the API shows it."""
        return CatalogueItem(
            id=self.ids[index],
            title=self.titles[index],
            semantic_id=self.table.codes_NL[index].tolist(),
            available=not self.removed_N[index],
            fields=self.fields_of(index),
        )

    def search(self, text: str, limit: int) -> list[int]:
        """Indices of the item of this id, then of those whose title holds the text, whatever the case."""
        wanted = text.casefold()
        by_id = [index for index in [self.find(text)] if index is not None]
        by_title = (index for index, title in enumerate(self.titles) if wanted in title.casefold())
        return list(itertools.islice(dict.fromkeys(itertools.chain(by_id, by_title)), limit))

    def fields_of(self, index: int) -> dict[str, FieldValue]:
        """Values by column, the id left out."""
        return {name: value for name, value in self.items.row(index, named=True).items() if name != _ID}

    def require_columns(self, name: str, columns: Iterable[str], others: Sequence[str] = ()) -> None:
        """Refuse columns that the items do not have; `others` are allowed beside them.

        Raises:
            ServingError: `name` says whose they are.
        """
        known = list(dict.fromkeys([*(column for column in self.items.columns if column != _ID), *others]))
        unknown = [column for column in columns if column not in known]
        if unknown:
            raise ServingError(f"{name}: found {unknown[0]!r}, expected columns of the catalogue: {', '.join(known)}.")

    def require_fields(self, fields: Iterable[str]) -> None:
        """Refuse fields that are neither columns of the items nor read by the tokenizer, with ServingError."""
        assigner = self.bundle.assigner
        self.require_columns("fields", fields, [] if assigner is None else assigner.item_text_columns)

    def place(self, change: ItemChange) -> ItemChange:
        """The change with a semantic ID by the tokenizer's frozen codebooks, where the item does not have one yet.

        Raises:
            ServingError: an id that does not fit the catalogue, or nothing says where the item belongs.
            CannotPlaceError: the bundle has no tokenizer part.
        """
        if self.find(change.item_id) is not None:
            return change
        _require_key(change.item_id, self.items.schema[_ID])
        return self._place_beside(change, self.table)

    def adopt(self, changes: Sequence[ItemChange]) -> tuple["Catalogue", list[ItemChange]]:
        """The catalogue after all that is stored, and those changes that had to be placed anew, to be stored again.

        An item that joined beside another ID table is placed by this bundle's codebooks. What is stored of other
        items that this bundle does not have is passed over: it was said of another bundle's own.

        Raises:
            ServingError, CannotPlaceError: as `place` and `change`.
        """
        ready = [change for change in changes if self._has_place(change)]
        catalogue = self.change(ready) if ready else self
        table, placed = catalogue.table, []
        for change in changes:
            if change.new_id is not None and not change.removed and not self._has_place(change):
                placed.append(self._place_beside(change, table))
                table = _extend_table(table, placed[-1:])
        return (catalogue.change(placed) if placed else catalogue), placed

    def change(self, changes: Sequence[ItemChange]) -> "Catalogue":
        """The catalogue after changes of distinct items; those it does not have need a semantic ID.

        Raises:
            ServingError: a value that does not fit its column, or nothing would be left.
        """
        known = {index: change for change in changes if (index := self.find(change.item_id)) is not None}
        new = [change for change in changes if self.find(change.item_id) is None]
        changed = {index: self._changed_row(index, known[index]) for index in sorted(known)}
        rows = [_row(change, self.items.schema, {}) for change in new]
        removed_N = np.append(self.removed_N, np.array([change.removed for change in new], dtype=bool))
        removed_N[list(known)] = [change.removed for change in known.values()]
        if removed_N.all():
            raise ServingError("item: it is the last one that may be returned. Add another before it is removed.")
        table, items = _extend_table(self.table, new), pl.concat([_replace_rows(self.items, changed), *rows])
        recommender = self._recommender(table, items, removed_N)
        return replace(self, table=table, items=items, removed_N=removed_N, recommender=recommender, _filtered={})

    def recommender_for(self, chosen: Filter | None) -> OneRecRecommender | None:
        """Returns only items that pass a filter, and None where none does; for one thread at a time."""
        if chosen is None:
            return self.recommender
        if chosen not in self._filtered:
            if len(self._filtered) >= _MAX_FILTERS:
                del self._filtered[next(iter(self._filtered))]
            allowed_N = chosen.allowed(self.items) & ~self.removed_N
            self._filtered[chosen] = self._restricted(self.recommender, allowed_N) if allowed_N.any() else None
        return self._filtered[chosen]

    def _has_place(self, change: ItemChange) -> bool:
        return self.find(change.item_id) is not None or change.table_hash == self.bundle.table.content_hash

    def _place_beside(self, change: ItemChange, table: SemanticIdTable) -> ItemChange:
        if self.bundle.assigner is None:
            raise CannotPlaceError(
                f"item {change.item_id!r}: this bundle was written without its tokenizer and cannot place new items. "
                "Write it again from its run."
            )
        texts = {name: str(value) for name, value in change.fields.items() if value is not None}
        vector = None if change.vector is None else np.array(change.vector, dtype=np.float32)
        try:
            new_id = self.bundle.assigner.assign(texts, vector, table)
        except DataError as error:
            raise ServingError(f"item {change.item_id!r}: {error}") from error
        return replace(change, new_id=new_id, table_hash=self.bundle.table.content_hash)

    def _changed_row(self, index: int, change: ItemChange) -> pl.DataFrame:
        return _row(change, self.items.schema, self.fields_of(index))

    def _recommender(self, table: SemanticIdTable, items: pl.DataFrame, removed_N: np.ndarray) -> OneRecRecommender:
        """Knows the items of the next catalogue; the same one as long as nothing that it reads has changed."""
        recommender = self.recommender
        reads_fields = recommender.model.encoder.pathways is not None
        if table is not self.table or reads_fields:
            if not recommender.is_whole:
                raise ServingError(
                    "item: found a model that several processes share, which takes in no new items and no fields that "
                    "it reads. Serve it by one process, or write the bundle again."
                )
            model = with_items(recommender.model, table, items, self.bundle.assigner)
            recommender = recommender.remade(model, self._changed_trie(table, removed_N))
            recommender.precision = self.recommender.precision
        elif (removed_N == self.removed_N).all():
            return recommender
        else:
            recommender = copy.copy(recommender)
            recommender.trie = self._changed_trie(table, removed_N)
        return recommender

    def _changed_trie(self, table: SemanticIdTable, removed_N: np.ndarray) -> Trie:
        """The tree of what may be returned, made from the one of now: it costs the change, not the catalogue."""
        trie, num_old = self.recommender.trie, self.table.num_items
        if table.num_items > num_old:
            trie = trie.add(table.codes_NL[num_old:], table.bucket_rank_N[num_old:])
        was_removed_N = np.append(self.removed_N, np.zeros(table.num_items - num_old, dtype=bool))
        back, gone = np.flatnonzero(was_removed_N & ~removed_N), np.flatnonzero(removed_N & ~was_removed_N)
        trie = trie.restore(back) if len(back) else trie
        trie = trie.remove(gone) if len(gone) else trie
        if trie.num_changes - int(removed_N.sum()) <= _MAX_ADDED:
            return trie
        return build_trie(table).remove(np.flatnonzero(removed_N)).to(trie.device)

    @staticmethod
    def _restricted(recommender: OneRecRecommender, allowed_N: np.ndarray) -> OneRecRecommender:
        restricted = copy.copy(recommender)
        restricted.trie = recommender.trie.restrict(allowed_N).to(recommender.model.device)
        return restricted


def _extend_table(table: SemanticIdTable, new: Sequence[ItemChange]) -> SemanticIdTable:
    if not new:
        return table
    new_ids = [change.new_id for change in new if change.new_id is not None]
    assert len(new_ids) == len(new)
    codes_ML = np.array([new_id.codes for new_id in new_ids], dtype=np.int32)
    ranks_M = np.array([new_id.bucket_rank for new_id in new_ids], dtype=np.int32)
    return SemanticIdTable(
        np.concatenate([table.codes_NL, codes_ML]),
        table.codes_per_level,
        [*table.item_ids, *(change.item_id for change in new)],
        np.concatenate([table.bucket_rank_N, ranks_M]),
    )


def _require_key(item_id: str, key_type: pl.DataType) -> None:
    """Raise ServingError for an id that the catalogue could not hold as it was written."""
    try:
        written = pl.Series([item_id]).cast(key_type).cast(pl.String)[0]
    except pl.exceptions.PolarsError:
        written = None
    if written != item_id:
        raise ServingError(f"id: found {item_id!r}, expected one of type {key_type}, as all of this catalogue are.")


def _row(change: ItemChange, schema: pl.Schema, known: dict[str, FieldValue]) -> pl.DataFrame:
    """One row of the items table: what was put over what was known."""
    values = {name: change.fields.get(name, known.get(name)) for name in schema.names() if name != _ID}
    columns = [pl.Series(_ID, [change.item_id]).cast(schema[_ID])]
    for name, value in values.items():
        try:
            columns.append(pl.Series(name, [value], dtype=schema[name], strict=True))
        except (TypeError, pl.exceptions.PolarsError):
            raise ServingError(f"fields.{name}: found {value!r}, expected a value of type {schema[name]}.") from None
    return pl.DataFrame(columns).select(schema.names())


def _replace_rows(items: pl.DataFrame, rows: dict[int, pl.DataFrame]) -> pl.DataFrame:
    """The table with some rows, which come in order, in the place of its own."""
    parts, start = [], 0
    for index, row in rows.items():
        parts += [items[start:index], row]
        start = index + 1
    return pl.concat([*parts, items[start:]])
