import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from tokenizer.behaviour.images import image_states, read_images
from tokenizer.behaviour.tokens import IMAGE, TEXT, item_tokens
from tokenizer.config import ImageSettings, TokenizerSettings
from tokenizer.errors import ConfigError, DataError
from tokenizer.settings import build_settings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small untrained ViT: 16 x 16 pixels in 4 patches and a class token, width 12."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    shape = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **shape)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


def picture(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 30), colour).save(buffer, format="PNG")
    return buffer.getvalue()


RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255))


def test_paths_and_bytes_give_the_same_vectors(checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "blue.png").write_bytes(BLUE)
    chosen = ImageSettings(encoder=checkpoint, column="cover", batch_size=2)
    of_bytes = read_images(pl.DataFrame({"cover": [RED, None, BLUE]}), chosen)
    of_paths = read_images(pl.DataFrame({"cover": [None, str(tmp_path / "blue.png")]}), chosen)
    (red, red_TD), (blue, blue_TD) = image_states(of_bytes, chosen, "cpu")
    assert (red, blue, red_TD.shape) == (0, 2, (5, 12))
    assert np.abs(red_TD - blue_TD).max() > 0.01
    ((row, same_TD),) = image_states(of_paths, chosen, "cpu")
    assert row == 1
    np.testing.assert_allclose(same_TD, blue_TD, atol=1e-5)


def test_many_patches_are_averaged(checkpoint: str) -> None:
    chosen = ImageSettings(encoder=checkpoint, column="cover")
    images = read_images(pl.DataFrame({"cover": [RED]}), chosen)
    ((_, whole_TD),) = image_states(images, chosen, "cpu")
    ((_, pooled_TD),) = image_states(images, chosen.model_copy(update={"max_tokens": 1}), "cpu")
    np.testing.assert_allclose(pooled_TD[0], whole_TD.mean(axis=0), atol=1e-5)


def test_images_stand_beside_texts_and_are_cached(checkpoint: str, tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["red", None, "blue"], "cover": [RED, BLUE, None]})
    tree: dict[str, Any] = {
        "text": {"columns": ["title"], "cache_folder": str(tmp_path)},
        "behaviour": {"weight": 1, "images": {"encoder": checkpoint, "column": "cover"}},
    }
    tokens = item_tokens(items, build_settings(TokenizerSettings, tree, "test"), [])
    assert tokens.widths == {TEXT: 384, IMAGE: 12}
    assert tokens.kinds[IMAGE].counts_N.tolist() == [5, 5, 0]
    assert tokens.known.tolist() == [True, True, True]  # b by its image
    assert len(list(tmp_path.glob("*.tokens"))) == 2


def test_what_is_no_image_or_checkpoint(checkpoint: str, tmp_path: Path) -> None:
    chosen = ImageSettings(encoder=checkpoint, column="cover")
    for table, message in [
        ({"picture": [RED]}, "no column 'cover'"),
        ({"cover": [3]}, "expected paths or bytes"),
    ]:
        with pytest.raises(DataError, match=message):
            read_images(pl.DataFrame(table), chosen)
    for content, message in [([RED, b"no image"], "row 1 holds no readable"), (["none.png"], "row 0: cannot read")]:
        with pytest.raises(DataError, match=message):
            list(image_states(read_images(pl.DataFrame({"cover": content}), chosen), chosen, "cpu"))
    images = read_images(pl.DataFrame({"cover": [RED]}), chosen)
    with pytest.raises(ConfigError, match="no folder with a checkpoint"):
        list(image_states(images, chosen.model_copy(update={"encoder": str(tmp_path)}), "cpu"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="expected a vision checkpoint"):
        list(image_states(images, chosen.model_copy(update={"encoder": str(tmp_path)}), "cpu"))
    with pytest.raises(ConfigError, match="need both the folder of an encoder and the name of a column"):
        build_settings(TokenizerSettings, {"behaviour": {"images": {"column": "cover"}}}, "test")
