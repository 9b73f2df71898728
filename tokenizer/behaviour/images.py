"""Images of items -> patch vectors, by a local vision checkpoint of transformers.

Legend: B images of a batch, T patch vectors, D width.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional
from tqdm import tqdm

from tokenizer.config import ImageSettings
from tokenizer.errors import ConfigError, DataError


@dataclass(frozen=True)
class ImageSource:
    """Where an item's image is: a file's path, or its bytes."""

    item: int
    content: str | bytes

    def read(self) -> bytes:
        """The image's bytes; raises DataError where the file cannot be read."""
        if isinstance(self.content, bytes):
            return self.content
        try:
            return Path(self.content).read_bytes()
        except OSError as error:
            raise DataError(f"images: row {self.item}: cannot read {self.content} ({error.strerror}).") from error


def read_images(items: pl.DataFrame, settings: ImageSettings) -> list[ImageSource]:
    """The images that a column names; rows that are null have none.

    Raises:
        DataError: no such column, or one of neither paths nor bytes.
    """
    if settings.column not in items.columns:
        raise DataError(f"images: no column {settings.column!r}; the columns are {', '.join(items.columns)}.")
    column = items[settings.column]
    if column.dtype not in (pl.String, pl.Binary):
        raise DataError(f"images: column {settings.column!r} is {column.dtype}, expected paths or bytes.")
    return [ImageSource(item, content) for item, content in enumerate(column) if content is not None]


def hash_images(images: list[ImageSource]) -> list[tuple[int, str]]:
    """Item and SHA-256 of every image."""
    return [(image.item, hashlib.sha256(image.read()).hexdigest()) for image in images]


def image_states(images: list[ImageSource], settings: ImageSettings, device: str) -> Iterator[tuple[int, np.ndarray]]:
    """Item and float32 patch vectors (T, D), at most `max_tokens` of them.

    Raises:
        ConfigError: the folder holds no vision checkpoint.
        DataError: bytes that are no image.
    """
    processor, model = _load(settings.encoder)
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    model = model.to(place)
    with tqdm(total=len(images), desc="patch vectors of images", unit="image", disable=None) as progress:
        for start in range(0, len(images), settings.batch_size):
            part = images[start : start + settings.batch_size]
            pixels = processor(images=[_open(image) for image in part], return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                states = model(pixel_values=pixels.to(place)).last_hidden_state.float()
            patches_BTD = (
                states.flatten(2).transpose(1, 2) if states.dim() == 4 else states
            )  # convolutions give B D H W
            kept = min(settings.max_tokens, patches_BTD.shape[1])
            pooled_BTD = functional.adaptive_avg_pool1d(patches_BTD.transpose(1, 2), kept).transpose(1, 2)
            yield from zip((image.item for image in part), pooled_BTD.cpu().numpy(), strict=True)
            progress.update(len(part))


def _load(folder: str) -> tuple[Any, torch.nn.Module]:
    from transformers import AutoImageProcessor, AutoModel

    if not (Path(folder) / "config.json").is_file():
        raise ConfigError(
            f"tokenizer.behaviour.images.encoder: {folder!r} is no folder with a checkpoint (config.json)."
        )
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"tokenizer.behaviour.images.encoder: cannot load {folder} ({error}); expected a vision checkpoint of "
            "transformers with its image processor."
        ) from error
    return processor, getattr(model, "vision_model", model).eval()  # CLIP and its kin hold two towers


def _open(image: ImageSource) -> Image.Image:
    try:
        return Image.open(io.BytesIO(image.read())).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"images: row {image.item} holds no readable image ({error}).") from error
