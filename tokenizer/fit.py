"""Items and training sequences -> the tokenizer's artefact."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from tokenizer.artifacts import atomic_folder, write_json, write_manifest
from tokenizer.behaviour.front import BehaviourFront, FrontReport, fit_front
from tokenizer.behaviour.tokens import ItemTokens, item_tokens
from tokenizer.collaborative import collaborative_vectors
from tokenizer.collisions import Resolution, resolve_collisions
from tokenizer.config import CollisionSettings, PieceSettings, TokenizerSettings
from tokenizer.encoders import given_vectors, text_vectors
from tokenizer.errors import DataError
from tokenizer.fusion import Fusion, Source
from tokenizer.pieces import SemanticIdPieces
from tokenizer.quantizers import ResidualQuantizer, fit_quantizer
from tokenizer.report import Report, describe, failures, write_report
from tokenizer.sequences import Sequences
from tokenizer.table import SemanticIdTable

KIND = "tokenizer"
PIECES_NAME = "pieces.model"
FRONT_NAME = "qformer.safetensors"
VECTORS_NAME = "vectors.npy"


@dataclass(frozen=True)
class FittedTokenizer:
    """All that a tokenizer's folder holds."""

    table: SemanticIdTable
    quantizer: ResidualQuantizer
    fusion: Fusion
    vectors_ND: np.ndarray  # fused
    settings: TokenizerSettings
    text_columns: list[str]
    report: Report
    pieces: SemanticIdPieces | None = None
    front: BehaviourFront | None = None

    def save(self, folder: Path, inputs: dict[str, str], config_hash: str) -> None:
        """Write the artefact under its manifest, all or nothing."""
        with atomic_folder(folder) as temporary:
            self.table.save(temporary)
            self.quantizer.save(temporary / "codebooks.safetensors")
            self.fusion.save(temporary / "fusion.safetensors")
            np.save(temporary / VECTORS_NAME, self.vectors_ND)
            if self.pieces is not None:
                self.pieces.save(temporary / PIECES_NAME)
            if self.front is not None:
                self.front.save(temporary / FRONT_NAME)
            recipe = {"settings": self.settings.model_dump(mode="json"), "text_columns": self.text_columns}
            write_json(temporary / "recipe.json", recipe)
            write_report(self.report, temporary)
            details = {"table_hash": self.table.content_hash, "catalogue_hash": self.table.catalogue_hash}
            write_manifest(temporary, KIND, inputs, config_hash, details)


def fit_tokenizer(
    items: pl.DataFrame,
    sequences: Sequences,
    settings: TokenizerSettings,
    folder: Path,
    inputs: dict[str, str],
    config_hash: str,
    text_columns: Sequence[str] = (),
) -> SemanticIdTable:
    """Fit vectors, codebooks and the ID table, and store them in `folder`.

    Args:
        items: one row an item, with the column `item_id`.
        sequences: training events only.
        inputs: artefact read -> its content hash, for the manifest.
        text_columns: what `text.columns: auto` stands for.

    Raises:
        DataError: unusable items, vectors or sequences, a catalogue larger than the code space, or a report beyond the
            settings' thresholds (the report is then left beside `folder`, in `<folder>.failed`).
    """
    item_ids = read_item_ids(items)
    popularity_N = sequences.item_counts(len(items))
    sources, front, front_report = fit_sources(items, sequences, settings, text_columns)
    fusion = Fusion.fit(sources, settings.fusion)
    vectors_ND = fusion.transform(sources)
    quantizer, codes_NL = fit_quantizer(vectors_ND, settings.quantizer, settings.seed)
    report = describe(codes_NL, quantizer, vectors_ND, settings, count_unknown(sources))
    _refuse_collapse(report, settings, folder)
    resolution = _resolve(codes_NL, quantizer, vectors_ND, popularity_N, settings.collisions)
    table = SemanticIdTable(resolution.codes_NL, resolution.codes_per_level, item_ids, resolution.bucket_rank_N)
    report = report.after_resolution(resolution).model_copy(update={"behaviour": front_report})
    pieces = fit_pieces(table, popularity_N, settings.pieces)
    columns = list(text_columns)
    tokenizer = FittedTokenizer(table, quantizer, fusion, vectors_ND, settings, columns, report, pieces, front)
    tokenizer.save(folder, inputs, config_hash)
    return table


def fit_pieces(table: SemanticIdTable, popularity_N: np.ndarray, settings: PieceSettings) -> SemanticIdPieces | None:
    """Pieces of the table's IDs, None where the settings ask for none."""
    if not settings.vocabulary_size:
        return None
    return SemanticIdPieces.fit(
        table.codes_NL, table.codes_per_level, popularity_N, settings.vocabulary_size, settings.model
    )


def load_pieces(folder: Path, table: SemanticIdTable) -> SemanticIdPieces | None:
    """The pieces in a tokenizer's folder, None where it was fitted without.

    Raises:
        ArtifactError: the file is damaged or of another tokenizer.
    """
    path = folder / PIECES_NAME
    return SemanticIdPieces.load(path, table.codes_per_level) if path.exists() else None


def load_item_vectors(folder: Path) -> np.ndarray:
    """The vectors (N, V) that a tokenizer in a folder has quantised, mapped from their file."""
    vectors_NV: np.ndarray = np.load(folder / VECTORS_NAME, mmap_mode="r")
    return vectors_NV


def load_front(folder: Path) -> BehaviourFront | None:
    """The QFormer in a tokenizer's folder, None where it was fitted without.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = folder / FRONT_NAME
    return BehaviourFront.load(path) if path.exists() else None


def read_item_ids(items: pl.DataFrame) -> list[str]:
    """The column `item_id` as strings.

    Raises:
        DataError: no items, no such column, a null or a repeated id.
    """
    if "item_id" not in items.columns:
        raise DataError(f"items: found the columns {', '.join(items.columns)}, expected one named item_id.")
    if not len(items):
        raise DataError("items: the table is empty, expected one row an item.")
    ids = items["item_id"].cast(pl.String)
    if ids.null_count():
        row = int(ids.is_null().arg_max() or 0)
        raise DataError(f"items: {ids.null_count()} item ids are null, the first in row {row}. Give every item an id.")
    if ids.n_unique() < len(ids):
        row = int((~ids.is_first_distinct()).arg_max() or 0)
        raise DataError(
            f"items: {len(ids) - ids.n_unique()} item ids are repeats, the first is {ids[row]!r} in row {row}."
        )
    return ids.to_list()


def fit_sources(
    items: pl.DataFrame, sequences: Sequences, settings: TokenizerSettings, text_columns: Sequence[str]
) -> tuple[list[Source], BehaviourFront | None, FrontReport | None]:
    """Vectors of every source with a weight, and which items it knows; the front behind the behaviour-aware ones."""
    sources = item_sources(items, settings, text_columns)
    front: BehaviourFront | None = None
    report: FrontReport | None = None
    if settings.behaviour.weight > 0:
        tokens = item_tokens(items, settings, text_columns)
        front, report = fit_front(tokens, sequences, settings)
        sources.append(behaviour_source(tokens, front, settings))
    if settings.collaborative.weight > 0:
        vectors = collaborative_vectors(sequences, len(items), settings.collaborative, settings.seed)
        known = np.asarray(vectors.any(axis=1))
        sources.append(Source("collaborative", settings.collaborative.weight, vectors, known))
    return sources, front, report


def item_sources(
    items: pl.DataFrame, settings: TokenizerSettings, text_columns: Sequence[str], front: BehaviourFront | None = None
) -> list[Source]:
    """Vectors from the items table alone: text, given and, through a frozen front, behaviour-aware."""
    sources = []
    if settings.text.weight > 0:
        vectors, known = text_vectors(items, settings.text, text_columns)
        sources.append(Source("text", settings.text.weight, vectors, known))
    if settings.given.weight > 0:
        vectors = given_vectors(items, settings.given)
        sources.append(Source("given", settings.given.weight, vectors, np.asarray(vectors.any(axis=1))))
    if front is not None:
        sources.append(behaviour_source(item_tokens(items, settings, text_columns), front, settings))
    return sources


def behaviour_source(tokens: ItemTokens, front: BehaviourFront, settings: TokenizerSettings) -> Source:
    """Vectors of items by their tokens."""
    return Source("behaviour", settings.behaviour.weight, front.vectors(tokens), tokens.known)


def count_unknown(sources: Sequence[Source]) -> dict[str, int]:
    """Source -> number of items it knows nothing of."""
    return {source.name: int((~source.known_N).sum()) for source in sources}


def _refuse_collapse(report: Report, settings: TokenizerSettings, folder: Path) -> None:
    """Raise DataError where the codes break a threshold; comes before collisions are handled, which would hide it."""
    broken = failures(report, settings.report)
    if not broken:
        return
    failed = folder.with_name(folder.name + ".failed")
    with atomic_folder(failed) as temporary:
        write_report(report, temporary)
    raise DataError(
        f"tokenizer: the codes fail their thresholds: {'; '.join(broken)}. See {failed / 'report.html'}; change "
        "tokenizer.quantizer (fewer codes_per_level for a small catalogue, more evening_fills), the vectors, or the "
        "thresholds in tokenizer.report."
    )


def _resolve(
    codes_NL: np.ndarray,
    quantizer: ResidualQuantizer,
    vectors_ND: np.ndarray,
    popularity_N: np.ndarray,
    settings: CollisionSettings,
) -> Resolution:
    """The codes after the collision policy, by the latents of the vectors that were quantised."""
    return resolve_collisions(
        codes_NL, quantizer.codebooks, lambda rows: quantizer.latents(vectors_ND[rows]), popularity_N, settings
    )
