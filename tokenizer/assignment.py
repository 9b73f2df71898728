"""New items: semantic IDs from frozen codebooks; items that have one keep it.

An item with an ID becomes reachable, not likely: the model has never seen it as a target.

Legend: N items, P items that have a place already, L code levels, D width.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import ValidationError

from tokenizer.artifacts import Manifest, read_manifest
from tokenizer.behaviour.front import BehaviourFront
from tokenizer.collisions import Resolution, place_items
from tokenizer.config import ImageSettings, TokenizerSettings
from tokenizer.errors import ArtifactError, ConfigError, DataError
from tokenizer.fit import (
    FRONT_NAME,
    KIND,
    PIECES_NAME,
    FittedTokenizer,
    count_unknown,
    item_sources,
    load_front,
    load_pieces,
    read_item_ids,
)
from tokenizer.fusion import Fusion, Source
from tokenizer.pieces import SemanticIdPieces
from tokenizer.quantizers import ResidualQuantizer
from tokenizer.report import Report, describe
from tokenizer.table import SemanticIdTable

_RECIPE, _CODEBOOKS, _FUSION = "recipe.json", "codebooks.safetensors", "fusion.safetensors"


@dataclass(frozen=True)
class Assigner:
    """The part of a tokenizer that gives items codes, frozen; with the ID table beside it, it can place new ones."""

    quantizer: ResidualQuantizer
    fusion: Fusion
    settings: TokenizerSettings
    text_columns: list[str]
    pieces: SemanticIdPieces | None = None
    front: BehaviourFront | None = None

    @classmethod
    def load(cls, folder: Path, table: SemanticIdTable) -> "Assigner":
        """Read it from a tokenizer's folder, or from one that `copy_assigner` filled.

        Raises:
            ArtifactError: a missing or damaged file, or codebooks of other levels than the table's.
        """
        settings, text_columns = _read_recipe(folder)
        quantizer = ResidualQuantizer.load(folder / _CODEBOOKS)
        sizes = quantizer.codes_per_level
        own_levels = len(sizes) + (settings.collisions.policy == "suffix")
        if table.codes_per_level[: len(sizes)] != sizes or table.num_levels != own_levels:
            raise ArtifactError(
                f"{folder}: found codebooks of {list(sizes)} codes under the policy {settings.collisions.policy!r}, "
                f"expected those of an ID table of {list(table.codes_per_level)}. Use the table's own tokenizer."
            )
        fusion, pieces = Fusion.load(folder / _FUSION), load_pieces(folder, table)
        return cls(quantizer, fusion, settings, text_columns, pieces, load_front(folder))

    @property
    def item_text_columns(self) -> list[str]:
        """Columns whose text it reads; none where it knows items by other means."""
        if not self.settings.text.weight and self.front is None:
            return []
        columns = self.settings.text.columns
        return list(self.text_columns if columns == "auto" else columns)

    @property
    def vector_width(self) -> int | None:
        """Width of the vectors that it takes; None where it was fitted without."""
        return self.fusion.width_of("given") if self.settings.given.weight else None

    def assign(self, texts: dict[str, str], vector: np.ndarray | None, placed: SemanticIdTable) -> "NewId":
        """Give one item the codes nearest to its text, its vector or both, that have room beside the items placed.

        Args:
            texts: the item's text by column; what is left out or blank counts as unknown.
            vector: float32 (D,), where the tokenizer was fitted on given vectors and the item has one.
            placed: semantic IDs that are taken.

        Raises:
            DataError: neither text nor vector, a vector of another width, or no room in the whole code space.
        """
        row = {name: texts.get(name, "") for name in self.item_text_columns}
        has_text = any(text.strip() for text in row.values())
        self._require_source(has_text, vector)
        reads_text = has_text and self.settings.text.weight > 0
        text = self.settings.text.model_copy(update={"weight": float(reads_text), "cache_folder": ""})
        given = self.settings.given.model_copy(update={"weight": float(vector is not None)})
        behaviour = self.settings.behaviour.model_copy(update={"images": ImageSettings()})  # known by its text alone
        groups = {"text": text, "given": given, "behaviour": behaviour}
        front = self.front if has_text else None
        alone = replace(self, settings=self.settings.model_copy(update=groups), front=front)
        values = row if vector is None else {**row, given.source: vector.tolist()}
        item = pl.DataFrame({name: [value] for name, value in values.items()})
        vectors_ND = self.fusion.transform(_sources_of(item, alone, np.ones(1, dtype=bool)))
        resolution = _place(self.quantizer.assign(vectors_ND), vectors_ND, self, placed)
        return NewId(tuple(resolution.codes_NL[0].tolist()), int(resolution.bucket_rank_N[0]))

    def _require_source(self, has_text: bool, vector: np.ndarray | None) -> None:
        """Raise DataError unless something says where an item belongs."""
        columns, width = self.item_text_columns, self.vector_width
        if vector is not None and len(vector) != width:
            expected = "none, since it was fitted without" if width is None else f"a width of {width}"
            raise DataError(f"vector: found a width of {len(vector)}, the tokenizer expects {expected}.")
        if has_text or vector is not None:
            return
        if not columns and width is None:
            raise DataError(
                "new item: this tokenizer knows items by training events alone, and a new one has none. "
                "Fit it with text or given vectors as well."
            )
        sources = [f"text in {', '.join(columns)}"] * bool(columns) + [f"a vector of width {width}"] * bool(width)
        raise DataError(f"new item: expected {' or '.join(sources)}, found neither; nothing says where it belongs.")


@dataclass(frozen=True)
class NewId:
    """A semantic ID and the rank among the items that share it."""

    codes: tuple[int, ...]
    bucket_rank: int


def copy_assigner(tokenizer: Path, folder: Path) -> Manifest:
    """Copy from a finished tokenizer what `Assigner.load` reads, into a folder to be; the tokenizer's manifest.

    Raises:
        ArtifactError: `tokenizer` is not a finished tokenizer.
    """
    manifest = read_manifest(tokenizer, KIND)
    folder.mkdir(parents=True)
    for name in (_RECIPE, _CODEBOOKS, _FUSION, PIECES_NAME, FRONT_NAME):
        if name in manifest.files:
            shutil.copyfile(tokenizer / name, folder / name)
    return manifest


def assign_items(folder: Path, items: pl.DataFrame, out: Path, inputs: dict[str, str] | None = None) -> SemanticIdTable:
    """Extend the tokenizer in `folder` by the items it does not have yet, and store the result in `out`.

    The old items keep their index and codes; the new ones follow in the order of `items`.

    Raises:
        DataError: nothing new, no vector for a new item, or no room for it.
        ArtifactError: `folder` is not a finished tokenizer.
    """
    manifest = read_manifest(folder, KIND)
    old = load_tokenizer(folder)
    ids = read_item_ids(items)
    known = set(old.table.item_ids)
    is_new = np.array([item_id not in known for item_id in ids])
    if not is_new.any():
        raise DataError(f"items: all {len(ids)} have a semantic ID in {folder} already; there is nothing to assign.")
    assigner = Assigner(old.quantizer, old.fusion, old.settings, old.text_columns, old.pieces, old.front)
    sources = _sources_of(items, assigner, is_new)
    vectors_ND = old.fusion.transform(sources)
    new_ids = [item_id for item_id, new in zip(ids, is_new, strict=True) if new]
    codes_NL = old.quantizer.assign(vectors_ND)
    resolution = _place(codes_NL, vectors_ND, assigner, old.table)
    table = SemanticIdTable(
        np.concatenate([old.table.codes_NL, resolution.codes_NL]),
        old.table.codes_per_level,
        [*old.table.item_ids, *new_ids],
        np.concatenate([old.table.bucket_rank_N, resolution.bucket_rank_N]),
    )
    all_vectors_ND = np.concatenate([old.vectors_ND, vectors_ND])
    fitted_codes_NL = np.concatenate([old.table.codes_NL[:, : codes_NL.shape[1]], codes_NL])
    unknown = {name: count + old.report.items_unknown[name] for name, count in count_unknown(sources).items()}
    report = describe(fitted_codes_NL, old.quantizer, all_vectors_ND, old.settings, unknown).after_resolution(
        Resolution(table.codes_NL, table.codes_per_level, table.bucket_rank_N, resolution.num_moved)
    )
    report = report.model_copy(update={"behaviour": old.report.behaviour})
    tokenizer = replace(old, table=table, vectors_ND=all_vectors_ND, report=report)
    tokenizer.save(out, {**(inputs or {}), "tokenizer": manifest.content_hash}, manifest.config_hash)
    return table


def load_tokenizer(folder: Path) -> FittedTokenizer:
    """Read all of a tokenizer's folder.

    Raises:
        ArtifactError: a missing or damaged file.
    """
    settings, text_columns = _read_recipe(folder)
    try:
        report = Report.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))
        vectors_ND = np.load(folder / "vectors.npy", mmap_mode="r")
    except (OSError, ValueError, ValidationError) as error:
        raise ArtifactError(f"{folder}: not a readable tokenizer ({error}). Fit it again.") from error
    table = SemanticIdTable.load(folder)
    return FittedTokenizer(
        table=table,
        quantizer=ResidualQuantizer.load(folder / _CODEBOOKS),
        fusion=Fusion.load(folder / _FUSION),
        vectors_ND=vectors_ND,
        settings=settings,
        text_columns=text_columns,
        report=report,
        pieces=load_pieces(folder, table),
        front=load_front(folder),
    )


def _read_recipe(folder: Path) -> tuple[TokenizerSettings, list[str]]:
    """The settings a tokenizer was fitted by, and what `text.columns: auto` stood for."""
    try:
        recipe = json.loads((folder / _RECIPE).read_text(encoding="utf-8"))
        return TokenizerSettings.model_validate(recipe["settings"]), recipe["text_columns"]
    except (OSError, ValueError, KeyError, ValidationError, ConfigError) as error:
        raise ArtifactError(f"{folder}: not a readable tokenizer ({error}). Fit it again.") from error


def _sources_of(items: pl.DataFrame, old: Assigner, is_new: np.ndarray) -> list[Source]:
    """The new items' vectors; collaborative ones are unknown and get predicted."""
    sources = {source.name: source for source in item_sources(items, old.settings, old.text_columns, old.front)}
    if not sources:
        raise DataError(
            "new items: this tokenizer knows items by training events alone, and new items have none. "
            "Fit it with text or given vectors as well."
        )
    ordered = []
    for name in old.fusion.names:
        if name in sources:
            source = sources[name]
            ordered.append(replace(source, vectors_ND=source.vectors_ND[is_new], known_N=source.known_N[is_new]))
        else:
            blank_ND = np.zeros((int(is_new.sum()), old.fusion.width_of(name)), dtype=np.float32)
            ordered.append(Source(name, 0.0, blank_ND, np.zeros(len(blank_ND), dtype=bool)))
    nothing = ~np.any([source.known_N for source in ordered], axis=0)
    if nothing.any():
        row = int(np.flatnonzero(is_new)[np.flatnonzero(nothing)[0]])
        raise DataError(
            f"new items: {int(nothing.sum())} have neither text nor a given vector, the first is row {row}; "
            "nothing says where they belong. Give them text."
        )
    return ordered


def _place(codes_NL: np.ndarray, vectors_ND: np.ndarray, old: Assigner, placed: SemanticIdTable) -> Resolution:
    """New items' final codes under the old table's policy; new items count as without training events."""
    policy = old.settings.collisions.policy
    num_levels = len(old.quantizer.codebooks)
    placed_codes_PL = placed.codes_NL[:, :num_levels]
    placed_ranks_P = placed.codes_NL[:, -1] if policy == "suffix" else placed.bucket_rank_N
    capacity = {
        "suffix": placed.codes_per_level[-1],
        "reassign": 1,
        "bucket": len(codes_NL) + placed.num_items,  # no limit
    }[policy]
    return place_items(
        codes_NL,
        old.quantizer.codebooks,
        lambda rows: old.quantizer.latents(vectors_ND[rows]),
        np.zeros(len(codes_NL), dtype=np.int64),
        capacity,
        policy,
        placed_codes_PL,
        placed_ranks_P,
    )
