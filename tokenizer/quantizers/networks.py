"""The networks of RQ-VAE."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn


class Autoencoder(nn.Module):
    """Two mirrored ReLU perceptrons; `widths` runs from the vector's width to the latent's."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(widths)
        self.encoder = _perceptron(self.widths)
        self.decoder = _perceptron(self.widths[::-1])

    @torch.no_grad()
    def encode(self, vectors_ND: torch.Tensor) -> torch.Tensor:
        """Latents of vectors, without gradient."""
        return self.encoder(vectors_ND)

    @torch.no_grad()
    def decode(self, latents_ND: torch.Tensor) -> torch.Tensor:
        """Vectors of latents, without gradient."""
        return self.decoder(latents_ND)


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for narrow, wide in itertools.pairwise(widths):
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
