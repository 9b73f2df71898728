"""A fitted residual quantizer: codebooks, and for RQ-VAE the networks around them.

Legend: N items, D width, L levels, K codes a level.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from kernels.residual_codes import assign_residual
from tokenizer.errors import ArtifactError, DataError
from tokenizer.quantizers.networks import Autoencoder


@dataclass(frozen=True)
class ResidualQuantizer:
    """Frozen codebooks that give any vector its codes.

    Args:
        kind: the settings' name of the method that fitted it.
        codebooks: one float32 (K, D) tensor a level; D is the latent width where there is an autoencoder.
        width: width of the vectors it takes.
        autoencoder: maps vectors to latents and back; None where vectors are quantised as they are.
        chunk_rows: rows held at once.
    """

    kind: str
    codebooks: list[torch.Tensor]
    width: int
    autoencoder: Autoencoder | None = None
    chunk_rows: int = 65_536

    @property
    def codes_per_level(self) -> tuple[int, ...]:
        """K of every level."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def latents(self, vectors_ND: np.ndarray) -> torch.Tensor:
        """What is quantised: the vectors themselves, or their encoding; float32.

        Raises:
            DataError: vectors of another width.
        """
        if vectors_ND.ndim != 2 or vectors_ND.shape[1] != self.width:
            raise DataError(
                f"vectors: found shape {vectors_ND.shape}, expected (items, {self.width}) as at fitting time."
            )
        rows = torch.from_numpy(np.array(vectors_ND, dtype=np.float32))
        return rows if self.autoencoder is None else self.autoencoder.encode(rows)

    def assign(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Nearest codes of every vector, int32 (N, L), streamed."""
        codes_NL = np.empty((len(vectors_ND), len(self.codebooks)), dtype=np.int32)
        for rows in iterate_chunks(len(vectors_ND), self.chunk_rows, "codes"):
            codes_NL[rows] = assign_residual(self.latents(vectors_ND[rows]), self.codebooks)[0].cpu().numpy()
        return codes_NL

    def reconstruct(self, codes_NL: np.ndarray) -> np.ndarray:
        """Vectors that codes stand for, float32 (N, D): the sum of codebook rows, decoded."""
        codes = torch.from_numpy(codes_NL.astype(np.int64))
        latents = torch.stack([book[codes[:, level]] for level, book in enumerate(self.codebooks)]).sum(dim=0)
        return (latents if self.autoencoder is None else self.autoencoder.decode(latents)).numpy()

    def save(self, path: Path) -> None:
        """Write codebooks and networks as safetensors."""
        tensors = {f"codebooks.{level}": book.contiguous() for level, book in enumerate(self.codebooks)}
        facts: dict[str, object] = {"kind": self.kind, "width": self.width, "chunk_rows": self.chunk_rows}
        if self.autoencoder is not None:
            tensors |= {f"autoencoder.{name}": value for name, value in self.autoencoder.state_dict().items()}
            facts["widths"] = self.autoencoder.widths
        save_file(tensors, path, metadata={"quantizer": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> "ResidualQuantizer":
        """Read what `save` wrote.

        Raises:
            ArtifactError: a missing or damaged file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["quantizer"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: not readable codebooks ({error}). Fit the tokenizer again.") from error
        autoencoder = None
        if "widths" in facts:
            autoencoder = Autoencoder(facts["widths"])
            prefix = "autoencoder."
            autoencoder.load_state_dict(
                {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            )
        num_levels = sum(name.startswith("codebooks.") for name in tensors)
        codebooks = [tensors[f"codebooks.{level}"] for level in range(num_levels)]
        return cls(facts["kind"], codebooks, facts["width"], autoencoder, facts["chunk_rows"])


def iterate_chunks(num_rows: int, chunk_rows: int, description: str) -> Iterator[slice]:
    """Slices that cover `num_rows`, under a progress bar."""
    starts = range(0, num_rows, chunk_rows)
    for start in tqdm(starts, desc=description, leave=False, disable=len(starts) < 2):
        yield slice(start, min(start + chunk_rows, num_rows))
