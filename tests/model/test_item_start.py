"""Items start as their vectors do: the same angles, the wanted size, whatever the widths; a model trains from there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from onerec.errors import ArtifactError
from onerec.model.item_start import start_items
from onerec.model.settings import ModelSettings
from onerec.training.pretraining import Fitted, pretrain
from onerec.training.settings import TrainingSettings
from tests.training.test_pretraining import NUM_ITEMS, cyclic_histories, small_table


def similarities(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("width", [6, 9])
def test_as_many_columns_as_the_vectors_keep_their_angles(width: int) -> None:
    vectors_NV = 3 + np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    table = nn.Embedding(40, width)
    start_items(table, vectors_NV, size=0.05, seed=1)
    rows = table.weight.detach().numpy()
    np.testing.assert_allclose(similarities(rows), similarities(vectors_NV), atol=1e-5)
    np.testing.assert_allclose(np.sqrt(np.square(rows).mean()), 0.05, rtol=1e-5)
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-6)
    per_column = np.square(rows).mean(axis=0)
    assert per_column.max() < 4 * per_column.mean()  # shared out, not the strongest direction first


def test_fewer_columns_keep_the_strongest_directions() -> None:
    along, across = np.array([1.0, 1, 0, 0]), np.array([0.0, 0, 1, -1])
    places_N2 = np.random.default_rng(0).standard_normal((50, 2)) * [5, 2]
    noise = 1e-4 * np.random.default_rng(1).standard_normal((50, 4))
    table = nn.Embedding(50, 2)
    start_items(table, places_N2 @ np.stack([along, across]) + noise, size=1.0, seed=0)
    np.testing.assert_allclose(similarities(table.weight.detach().numpy()), similarities(places_N2), atol=1e-3)


def test_many_items_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors_NV = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    tables = [nn.Embedding(20, 4) for _ in range(2)]
    start_items(tables[0], vectors_NV, size=0.02, seed=3)
    monkeypatch.setattr("onerec.model.item_start._ROWS", 6)
    start_items(tables[1], vectors_NV, size=0.02, seed=3)
    torch.testing.assert_close(tables[0].weight, tables[1].weight)


@pytest.mark.parametrize(
    ("vectors_NV", "message"),
    [(np.ones((4, 3)), "found 4, the model has 5 items"), (np.ones((5, 3)), "the same for every item")],
)
def test_vectors_that_cannot_be_started_from_are_refused(vectors_NV: np.ndarray, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        start_items(nn.Embedding(5, 2), vectors_NV, size=0.1, seed=0)


@pytest.mark.parametrize("given", [True, False])
def test_pre_training_starts_there(given: bool, tmp_path: Path) -> None:
    vectors_NV = np.random.default_rng(0).standard_normal((NUM_ITEMS, 20)).astype(np.float32)

    def train() -> np.ndarray:
        model = pretrain(
            cyclic_histories(),
            small_table(),
            ModelSettings(d_model=16, num_heads=2, d_ff=32, item_start=0.5),
            TrainingSettings(epochs=1, learning_rate=1e-7),
            lambda _: {"ndcg@10": 0.0},
            tmp_path / "pretrain",
            tmp_path / "checkpoints",
            inputs={},
            config_hash="0" * 64,
            seed=0,
            fitted=Fitted(item_vectors_NV=vectors_NV if given else None),
        )
        rows: np.ndarray = model.encoder.embedding.items.weight.detach().numpy()
        return rows

    if given:
        np.testing.assert_allclose(similarities(train()), similarities(vectors_NV), atol=1e-3)
    else:
        with pytest.raises(ArtifactError, match="found no item vectors to start from"):
            train()
