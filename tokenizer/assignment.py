"""New items: semantic IDs from frozen codebooks; items that have one keep it.

An item with an ID becomes reachable, not likely: the model has never seen it as a target.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import ValidationError

from tokenizer.artifacts import read_manifest
from tokenizer.collisions import Resolution, place_items
from tokenizer.config import TokenizerSettings
from tokenizer.errors import ArtifactError, ConfigError, DataError
from tokenizer.fit import KIND, FittedTokenizer, count_unknown, item_sources, load_pieces, read_item_ids
from tokenizer.fusion import Fusion, Source
from tokenizer.quantizers import ResidualQuantizer
from tokenizer.report import Report, describe
from tokenizer.table import SemanticIdTable


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
    sources = _sources_of(items, old, is_new)
    vectors_ND = old.fusion.transform(sources)
    new_ids = [item_id for item_id, new in zip(ids, is_new, strict=True) if new]
    codes_NL = old.quantizer.assign(vectors_ND)
    resolution = _place(codes_NL, vectors_ND, old)
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
    tokenizer = replace(old, table=table, vectors_ND=all_vectors_ND, report=report)
    tokenizer.save(out, {**(inputs or {}), "tokenizer": manifest.content_hash}, manifest.config_hash)
    return table


def load_tokenizer(folder: Path) -> FittedTokenizer:
    """Read all of a tokenizer's folder.

    Raises:
        ArtifactError: a missing or damaged file.
    """
    try:
        recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        settings = TokenizerSettings.model_validate(recipe["settings"])
        report = Report.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))
        vectors_ND = np.load(folder / "vectors.npy", mmap_mode="r")
    except (OSError, ValueError, KeyError, ValidationError, ConfigError) as error:
        raise ArtifactError(f"{folder}: not a readable tokenizer ({error}). Fit it again.") from error
    table = SemanticIdTable.load(folder)
    return FittedTokenizer(
        table=table,
        quantizer=ResidualQuantizer.load(folder / "codebooks.safetensors"),
        fusion=Fusion.load(folder / "fusion.safetensors"),
        vectors_ND=vectors_ND,
        settings=settings,
        text_columns=recipe["text_columns"],
        report=report,
        pieces=load_pieces(folder, table),
    )


def _sources_of(items: pl.DataFrame, old: FittedTokenizer, is_new: np.ndarray) -> list[Source]:
    """The new items' vectors; collaborative ones are unknown and get predicted."""
    sources = {source.name: source for source in item_sources(items, old.settings, old.text_columns)}
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


def _place(codes_NL: np.ndarray, vectors_ND: np.ndarray, old: FittedTokenizer) -> Resolution:
    """New items' final codes under the old table's policy; new items count as without training events."""
    policy = old.settings.collisions.policy
    num_levels = len(old.quantizer.codebooks)
    placed_codes = old.table.codes_NL[:, :num_levels]
    placed_ranks = old.table.codes_NL[:, -1] if policy == "suffix" else old.table.bucket_rank_N
    capacity = {
        "suffix": old.table.codes_per_level[-1],
        "reassign": 1,
        "bucket": len(codes_NL) + old.table.num_items,  # no limit
    }[policy]
    return place_items(
        codes_NL,
        old.quantizer.codebooks,
        lambda rows: old.quantizer.latents(vectors_ND[rows]),
        np.zeros(len(codes_NL), dtype=np.int64),
        capacity,
        policy,
        placed_codes,
        placed_ranks,
    )
