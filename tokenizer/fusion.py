"""Several sources of vectors -> one vector an item.

Each source is centred, optionally whitened, scaled to length 1 and weighted by the square root of its share, then all
are set side by side: squared distances are the weighted sum of the sources' own. An item that a source does not know
(no text, no training event) gets that source's part predicted by ridge regression from the others, so that cold items
stand among their kind; with no other source its part is zero. The maps are stored, and new items pass through the
same ones.

Legend: N items, D width of a source.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tokenizer.config import FusionSettings
from tokenizer.errors import ArtifactError, DataError

_SMALLEST_VARIANCE_SHARE = 1e-3  # directions below it are not blown up by whitening


@dataclass(frozen=True)
class Source:
    """Vectors of one kind for N items; `known_N` is False where the source knows nothing of an item."""

    name: str
    weight: float
    vectors_ND: np.ndarray
    known_N: np.ndarray


@dataclass
class Fusion:
    """Fitted maps from sources to the fused vector; parts stand in the order of `weights`."""

    weights: dict[str, float]  # source -> its share of squared length
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def fit(cls, sources: Sequence[Source], settings: FusionSettings) -> "Fusion":
        """Fit means, whitening and the maps for unknown parts on the items each source knows.

        Raises:
            DataError: a source that knows no item at all, or sources of different lengths.
        """
        total = sum(source.weight for source in sources)
        fusion = cls({source.name: source.weight / total for source in sources})
        for source in sources:
            known_ND = source.vectors_ND[source.known_N].astype(np.float64)
            if not len(known_ND):
                raise DataError(f"{source.name} vectors: none of the items has one. Set its weight to 0.")
            width = known_ND.shape[1]
            mean_D = known_ND.mean(axis=0) if settings.centre else np.zeros(width)
            fusion.arrays[f"{source.name}.mean"] = mean_D
            fusion.arrays[f"{source.name}.whitening"] = _whitening(known_ND - mean_D, settings.whiten_power)
        parts = {source.name: fusion._part(source) for source in sources}
        known = {source.name: source.known_N for source in sources}
        for name in fusion.names:
            others_ND = fusion._others(name, parts)
            if others_ND.shape[1]:
                fusion.arrays[f"{name}.ridge"] = _ridge(
                    others_ND[known[name]], parts[name][known[name]], settings.ridge
                )
        return fusion

    @property
    def names(self) -> list[str]:
        """Sources in the order of their parts."""
        return list(self.weights)

    def transform(self, sources: Sequence[Source]) -> np.ndarray:
        """Fused vectors, float32 (N, sum of widths).

        Raises:
            DataError: other sources or widths than at fitting time.
        """
        if [source.name for source in sources] != self.names:
            found = [source.name for source in sources]
            raise DataError(f"vectors: found the sources {found}, expected {self.names} as at fitting time.")
        parts = {source.name: self._part(source) for source in sources}
        fused = []
        for source in sources:
            part_ND = parts[source.name].copy()
            unknown_N = ~source.known_N
            if unknown_N.any() and f"{source.name}.ridge" in self.arrays:
                predicted = self._others(source.name, parts)[unknown_N] @ self.arrays[f"{source.name}.ridge"]
                part_ND[unknown_N] = _unit_rows(predicted)
            fused.append(part_ND * np.sqrt(self.weights[source.name]))
        return np.concatenate(fused, axis=1).astype(np.float32)

    def width_of(self, name: str) -> int:
        """Width of a source's vectors."""
        return len(self.arrays[f"{name}.mean"])

    def save(self, path: Path) -> None:
        """Write the maps as safetensors."""
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        save_file(arrays, path, metadata={"weights": json.dumps(self.weights)})

    @classmethod
    def load(cls, path: Path) -> "Fusion":
        """Read what `save` wrote; raises ArtifactError where it is missing or damaged."""
        try:
            with safe_open(path, framework="np") as file:
                weights = json.loads(file.metadata()["weights"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: not readable fusion maps ({error}). Fit the tokenizer again.") from error
        return cls(weights, arrays)

    def _part(self, source: Source) -> np.ndarray:
        """A source's centred, whitened rows of length 1; zero where unknown."""
        mean_D, whitening = self.arrays[f"{source.name}.mean"], self.arrays[f"{source.name}.whitening"]
        if source.vectors_ND.shape[1] != len(mean_D):
            raise DataError(f"{source.name} vectors: found width {source.vectors_ND.shape[1]}, expected {len(mean_D)}.")
        rows_ND = _unit_rows((source.vectors_ND.astype(np.float64) - mean_D) @ whitening)
        return np.where(source.known_N[:, None], rows_ND, 0.0)

    def _others(self, name: str, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        others = [parts[other] for other in self.names if other != name]
        return np.concatenate(others, axis=1) if others else np.zeros((len(parts[name]), 0))


def _unit_rows(rows_ND: np.ndarray) -> np.ndarray:
    lengths_N1 = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    return np.divide(rows_ND, lengths_N1, out=np.zeros_like(rows_ND), where=lengths_N1 > 0)


def _whitening(centred_ND: np.ndarray, power: float) -> np.ndarray:
    """Symmetric matrix covariance^(-power/2); power 0 is the identity."""
    width = centred_ND.shape[1]
    if power == 0:
        return np.eye(width)
    variances, directions = np.linalg.eigh(centred_ND.T @ centred_ND / len(centred_ND))
    if variances.max() <= 0:
        return np.eye(width)
    floored = np.maximum(variances, _SMALLEST_VARIANCE_SHARE * variances.max())
    return (directions * floored ** (-power / 2)) @ directions.T


def _ridge(inputs_NE: np.ndarray, outputs_ND: np.ndarray, penalty: float) -> np.ndarray:
    gram = inputs_NE.T @ inputs_NE + penalty * np.eye(inputs_NE.shape[1])
    return np.linalg.solve(gram, inputs_NE.T @ outputs_ND)
