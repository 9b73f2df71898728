from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokenizer.config import QuantizerSettings
from tokenizer.errors import ArtifactError, DataError
from tokenizer.quantizers import ResidualQuantizer, fit_quantizer
from tokenizer.quantizers.filling import fill_exactly
from tokenizer.quantizers.rq_kmeans import fit_kmeans, sample_rows


@pytest.fixture
def vectors() -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.normal(size=(6, 5))[np.arange(90) % 6] * 3 + random.normal(size=(90, 5)) * 0.3).astype(np.float32)


def _settings(**values: Any) -> QuantizerSettings:
    small_vae = {"latent_width": 3, "hidden_widths": [16], "epochs": 6, "batch_size": 32, "restart_every_steps": 10}
    base = {"codes_per_level": [6, 4], "iterations": 8, "rq_vae": small_vae}
    return QuantizerSettings.model_validate(base | values)


@pytest.mark.parametrize("kind", ["rq_kmeans", "balanced", "rq_vae"])
def test_same_seed_same_codes_and_disk(kind: str, vectors: np.ndarray, tmp_path: Path) -> None:
    first, codes = fit_quantizer(vectors, _settings(kind=kind), seed=1)
    _, again = fit_quantizer(vectors, _settings(kind=kind), seed=1)
    np.testing.assert_array_equal(codes, again)
    assert codes.dtype == np.int32
    assert codes.shape == (90, 2)
    first.save(tmp_path / "q.safetensors")
    loaded = ResidualQuantizer.load(tmp_path / "q.safetensors")
    assert (loaded.kind, loaded.codes_per_level, loaded.width) == (kind, (6, 4), 5)
    np.testing.assert_array_equal(loaded.assign(vectors), first.assign(vectors))
    np.testing.assert_array_equal(loaded.reconstruct(codes), first.reconstruct(codes))


@pytest.mark.parametrize("kind", ["rq_kmeans", "balanced", "rq_vae"])
def test_codes_carry_the_vectors(kind: str, vectors: np.ndarray) -> None:
    settings = _settings(
        kind=kind,
        rq_vae={"latent_width": 5, "hidden_widths": [64], "epochs": 60, "batch_size": 32, "learning_rate": 5e-3},
    )
    quantizer, codes = fit_quantizer(vectors, settings, seed=0)
    spread = np.square(vectors - vectors.mean(axis=0)).sum()
    assert np.square(vectors - quantizer.reconstruct(codes)).sum() < 0.25 * spread
    assert len(np.unique(codes[:, 0])) > 1


@pytest.mark.parametrize(
    ("num_items", "size"),
    [(3, 16), (1_682, 64), (2_340, 64), (2_341, 128), (12_101, 256), (10**6, 2048), (10**8, 8192)],
)
def test_the_catalogue_decides_how_many_codes_a_level_has(num_items: int, size: int) -> None:
    assert _settings(codes_per_level="auto").sizes(num_items) == [size] * 3
    assert size in (16, 8192) or size**2 <= 7 * num_items < (2 * size) ** 2


@pytest.mark.parametrize("kind", ["rq_kmeans", "balanced", "rq_vae"])
def test_codebooks_have_the_size_that_the_catalogue_decides(kind: str, vectors: np.ndarray) -> None:
    quantizer, codes = fit_quantizer(vectors, _settings(kind=kind, codes_per_level="auto"), seed=0)
    assert quantizer.codes_per_level == (16, 16, 16)
    assert codes.shape == (90, 3)


def test_evened_kmeans_finds_separate_clusters(vectors: np.ndarray) -> None:
    _, codes = fit_quantizer(vectors, _settings(evening_fills=2), seed=0)
    kind_of_code = {(int(code), row % 6) for row, code in enumerate(codes[:, 0])}
    assert len(kind_of_code) == 6


@pytest.mark.parametrize("evening_fills", [0, 2])
def test_centroids_are_the_means_of_their_rows(vectors: np.ndarray, evening_fills: int) -> None:
    settings = _settings(iterations=30, evening_fills=evening_fills)
    quantizer, codes = fit_quantizer(vectors, settings, seed=0)
    for code in range(6):
        rows = vectors[codes[:, 0] == code]
        np.testing.assert_allclose(quantizer.codebooks[0][code], rows.mean(axis=0), atol=1e-5)


def test_streaming_gives_the_same_codes(vectors: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    _, whole = fit_quantizer(vectors, _settings(), seed=0)
    _, streamed = fit_quantizer(mapped, _settings(chunk_rows=7), seed=0)
    np.testing.assert_array_equal(whole, streamed)


@pytest.mark.parametrize(("num_rows", "num_codes"), [(12, 4), (13, 4), (15, 4), (3, 5), (50, 7)])
def test_exact_fill(num_rows: int, num_codes: int) -> None:
    random = torch.Generator().manual_seed(num_rows)
    codes = fill_exactly(torch.randn(num_rows, 3, generator=random), torch.randn(num_codes, 3, generator=random))
    counts = torch.bincount(codes, minlength=num_codes)
    assert counts.sum() == num_rows
    assert int(counts.max() - counts.min()) == (1 if num_rows % num_codes else 0)


def test_exact_fill_worked_by_hand() -> None:
    """Codes at 0 and 10, room for two each: 1 and 2 are nearer to 0 than 3 is, so 3 goes to 10."""
    codes = fill_exactly(torch.tensor([[3.0], [1.0], [2.0], [9.0]]), torch.tensor([[0.0], [10.0]]))
    torch.testing.assert_close(codes, torch.tensor([1, 0, 0, 1]))


def test_balanced_levels_are_filled_exactly(vectors: np.ndarray) -> None:
    _, codes = fit_quantizer(vectors, _settings(kind="balanced", codes_per_level=[9, 10]), seed=0)
    np.testing.assert_array_equal(np.bincount(codes[:, 0]), [10] * 9)
    np.testing.assert_array_equal(np.bincount(codes[:, 1]), [9] * 10)


def test_fewer_distinct_rows_than_codes_leave_no_error() -> None:
    rows = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    codebook = fit_kmeans(rows, 8, iterations=5, seed=0)
    assert codebook.shape == (8, 3)
    quantizer, codes = fit_quantizer(rows, _settings(codes_per_level=[8, 8]), seed=0)
    np.testing.assert_allclose(quantizer.reconstruct(codes), rows, atol=1e-6)
    assert len(np.unique(codes, axis=0)) == 3


def test_sample_is_bounded_and_seeded() -> None:
    rows = sample_rows(100, 10, seed=4)
    assert isinstance(rows, np.ndarray)
    assert len(np.unique(rows)) == 10
    np.testing.assert_array_equal(rows, sample_rows(100, 10, seed=4))
    assert sample_rows(10, 10, seed=4) == slice(None)


def test_refuses_unusable_vectors(vectors: np.ndarray, tmp_path: Path) -> None:
    quantizer, _ = fit_quantizer(vectors, _settings(), seed=0)
    with pytest.raises(DataError, match=r"found shape \(90, 4\), expected \(items, 5\)"):
        quantizer.assign(vectors[:, :4])
    with pytest.raises(DataError, match="neither of them 0"):
        fit_quantizer(vectors[:0], _settings(), seed=0)
    vectors[17, 2] = np.inf
    with pytest.raises(DataError, match="row 17 holds NaN or infinity"):
        fit_quantizer(vectors, _settings(), seed=0)
    (tmp_path / "q").write_bytes(b"cut")
    with pytest.raises(ArtifactError, match="not readable codebooks"):
        ResidualQuantizer.load(tmp_path / "q")
