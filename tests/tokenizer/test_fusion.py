from pathlib import Path

import numpy as np
import pytest

from tokenizer.config import FusionSettings
from tokenizer.errors import ArtifactError, DataError
from tokenizer.fusion import Fusion, Source


def _source(name: str, weight: float, vectors: np.ndarray, unknown: tuple[int, ...] = ()) -> Source:
    known = np.ones(len(vectors), dtype=bool)
    known[list(unknown)] = False
    return Source(name, weight, vectors.astype(np.float32), known)


@pytest.fixture
def sources() -> list[Source]:
    random = np.random.default_rng(0)
    first = random.normal(size=(50, 6))
    second = first @ random.normal(size=(6, 3))
    second[7] = 0
    return [_source("text", 1.0, first), _source("collaborative", 3.0, second, unknown=(7,))]


def test_squared_distance_is_the_weighted_sum_of_the_sources() -> None:
    """Unit parts, shares 1/4 and 3/4: squared distance 2 in the first (at right angles), 4 in the second (opposite)."""
    text = _source("text", 1.0, np.array([[2.0, 0.0], [0.0, 5.0]]))
    given = _source("given", 3.0, np.array([[1.0], [-4.0]]))
    fused = Fusion.fit([text, given], FusionSettings(centre=False)).transform([text, given])
    np.testing.assert_allclose(((fused[0] - fused[1]) ** 2).sum(), 0.25 * 2 + 0.75 * 4, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(fused, axis=1), 1.0, rtol=1e-6)


def test_an_unknown_part_is_predicted_from_the_others(sources: list[Source]) -> None:
    fusion = Fusion.fit(sources, FusionSettings(ridge=1e-3))
    fused = fusion.transform(sources)
    truth = np.array(sources[1].vectors_ND)
    truth[7] = _linear_truth(sources, row=7)
    complete = [sources[0], _source("collaborative", 3.0, truth)]
    expected = fusion.transform(complete)[7, 6:]
    similarity = fused[7, 6:] @ expected / (np.linalg.norm(fused[7, 6:]) * np.linalg.norm(expected))
    assert similarity > 0.95
    np.testing.assert_allclose(np.linalg.norm(fused[7]), 1.0, rtol=1e-5)


def _linear_truth(sources: list[Source], row: int) -> np.ndarray:
    known = sources[1].known_N
    matrix, *_ = np.linalg.lstsq(sources[0].vectors_ND[known], sources[1].vectors_ND[known], rcond=None)
    return sources[0].vectors_ND[row] @ matrix


def test_full_whitening_evens_out_the_directions() -> None:
    random = np.random.default_rng(0)
    source = _source("text", 1.0, random.normal(size=(4000, 3)) * [1.0, 5.0, 20.0])
    fused = Fusion.fit([source], FusionSettings(whiten_power=1.0)).transform([source])
    variances = fused.var(axis=0)
    assert variances.max() / variances.min() < 1.2


def test_survives_the_disk(sources: list[Source], tmp_path: Path) -> None:
    fusion = Fusion.fit(sources, FusionSettings())
    fusion.save(tmp_path / "fusion.safetensors")
    loaded = Fusion.load(tmp_path / "fusion.safetensors")
    assert loaded.names == ["text", "collaborative"]
    np.testing.assert_array_equal(loaded.transform(sources), fusion.transform(sources))
    (tmp_path / "fusion.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match="not readable fusion maps"):
        Fusion.load(tmp_path / "fusion.safetensors")


def test_refuses_other_sources_widths_and_nothing_known(sources: list[Source]) -> None:
    fusion = Fusion.fit(sources, FusionSettings())
    with pytest.raises(DataError, match="expected \\['text', 'collaborative'\\]"):
        fusion.transform(sources[:1])
    narrow = _source("text", 1.0, np.ones((50, 5)))
    with pytest.raises(DataError, match="found width 5, expected 6"):
        fusion.transform([narrow, sources[1]])
    with pytest.raises(DataError, match="none of the items has one"):
        Fusion.fit([_source("given", 1.0, np.zeros((2, 3)), unknown=(0, 1))], FusionSettings())
