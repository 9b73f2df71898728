"""RQ-VAE as in TIGER (Rajput et al. 2023, arXiv 2305.05065, sections 3.1 and 4.1).

Departures:
1. Every codebook starts from k-means of the whole catalogue's latents (TIGER: of the first batch).
2. Codes unused since the last check restart at residuals drawn from the batch; TIGER relies on the k-means start
   alone.
3. AdamW instead of Adagrad.

Legend: N items, B batch, D width, K codes a level.
"""

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from kernels.reference import nearest_codes
from tokenizer.config import QuantizerSettings
from tokenizer.quantizers.networks import Autoencoder
from tokenizer.quantizers.residual import ResidualQuantizer
from tokenizer.quantizers.rq_kmeans import fit_kmeans, sample_rows


def fit_rq_vae(vectors_ND: np.ndarray, settings: QuantizerSettings, seed: int) -> ResidualQuantizer:
    """Autoencoder and codebooks trained together on float vectors (N, D)."""
    vae = settings.rq_vae
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = Autoencoder([vectors_ND.shape[1], *vae.hidden_widths, vae.latent_width])
    codebooks = _initial_codebooks(autoencoder, vectors_ND, settings, seed)
    parameters = [*autoencoder.parameters(), *codebooks]
    optimizer = torch.optim.AdamW(parameters, lr=vae.learning_rate, weight_decay=0.0)
    used = [torch.zeros(len(book), dtype=torch.bool) for book in codebooks]
    step = 0
    epochs = tqdm(range(vae.epochs), desc="RQ-VAE epochs", leave=False)
    for _ in epochs:
        for rows in torch.randperm(len(vectors_ND), generator=generator).split(vae.batch_size):
            batch_BD = torch.from_numpy(np.array(vectors_ND[rows.numpy()], dtype=np.float32))
            reconstruction, quantisation, residuals = _losses(autoencoder, codebooks, batch_BD, vae.commitment, used)
            optimizer.zero_grad()
            (reconstruction + quantisation).backward()
            optimizer.step()
            step += 1
            if step % vae.restart_every_steps == 0:
                _restart_dead_codes(codebooks, used, residuals, optimizer, generator)
        epochs.set_postfix(reconstruction=f"{reconstruction.item():.5f}")
    frozen = [book.detach().clone() for book in codebooks]
    return ResidualQuantizer(
        "rq_vae", frozen, vectors_ND.shape[1], autoencoder.requires_grad_(False), settings.chunk_rows
    )


def _initial_codebooks(
    autoencoder: Autoencoder, vectors_ND: np.ndarray, settings: QuantizerSettings, seed: int
) -> list[torch.Tensor]:
    sizes = settings.sizes(len(vectors_ND))
    rows = sample_rows(len(vectors_ND), settings.train_rows_per_code * max(sizes), seed)
    residual = autoencoder.encode(torch.from_numpy(np.array(vectors_ND[rows], dtype=np.float32)))
    codebooks = []
    for level, num_codes in enumerate(sizes):
        codebook = fit_kmeans(residual.numpy(), num_codes, settings.iterations, seed + level)
        residual = residual - codebook[nearest_codes(residual, codebook)]
        codebooks.append(codebook.requires_grad_())
    return codebooks


def _losses(
    autoencoder: Autoencoder,
    codebooks: list[torch.Tensor],
    batch_BD: torch.Tensor,
    commitment: float,
    used: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Reconstruction and quantisation losses, and every level's residuals; marks the codes met in `used`."""
    latent = autoencoder.encoder(batch_BD)
    residual, quantised = latent, torch.zeros_like(latent)
    loss = latent.new_zeros(())
    residuals = []
    for level, codebook in enumerate(codebooks):
        codes_B = nearest_codes(residual.detach(), codebook.detach())
        used[level][codes_B] = True
        residuals.append(residual.detach())
        chosen = codebook[codes_B]
        loss = loss + (residual.detach() - chosen).square().sum(dim=1).mean()
        loss = loss + commitment * (residual - chosen.detach()).square().sum(dim=1).mean()
        quantised = quantised + chosen
        residual = residual - chosen.detach()
    straight_through = latent + (quantised - latent).detach()
    reconstructed = autoencoder.decoder(straight_through)
    return functional.mse_loss(reconstructed, batch_BD, reduction="sum") / len(batch_BD), loss, residuals


@torch.no_grad()
def _restart_dead_codes(
    codebooks: list[torch.Tensor],
    used: list[torch.Tensor],
    residuals: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Put codes unused since the last check on residuals of the batch, forget their moments, and clear `used`."""
    for codebook, met, residual in zip(codebooks, used, residuals, strict=True):
        dead = torch.nonzero(~met).squeeze(1)
        drawn = torch.randint(len(residual), (len(dead),), generator=generator)
        codebook[dead] = residual[drawn]
        for moment in ("exp_avg", "exp_avg_sq"):
            optimizer.state[codebook][moment][dead] = 0.0
        met.fill_(False)
