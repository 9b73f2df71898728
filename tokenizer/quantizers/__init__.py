"""Vectors -> codes. Every method returns a `ResidualQuantizer` and the codes of the items it was fitted on."""

import numpy as np

from tokenizer.config import QuantizerSettings
from tokenizer.errors import DataError
from tokenizer.quantizers.residual import ResidualQuantizer

__all__ = ["ResidualQuantizer", "fit_quantizer"]


def fit_quantizer(
    vectors_ND: np.ndarray, settings: QuantizerSettings, seed: int
) -> tuple[ResidualQuantizer, np.ndarray]:
    """Fit `settings.kind` on float vectors (N, D); returns the quantizer and int32 codes (N, L).

    Raises:
        DataError: no vectors, or numbers that are not finite.
    """
    if vectors_ND.ndim != 2 or 0 in vectors_ND.shape:
        raise DataError(f"vectors: found shape {vectors_ND.shape}, expected (items, width), neither of them 0.")
    for start in range(0, len(vectors_ND), settings.chunk_rows):
        wrong = np.flatnonzero(~np.isfinite(vectors_ND[start : start + settings.chunk_rows]).all(axis=1))
        if len(wrong):
            raise DataError(f"vectors: row {start + wrong[0]} holds NaN or infinity. Mend the vectors given.")
    if settings.kind == "balanced":
        from tokenizer.quantizers.balanced import fit_balanced

        return fit_balanced(vectors_ND, settings, seed)
    if settings.kind == "rq_vae":
        from tokenizer.quantizers.rq_vae import fit_rq_vae

        quantizer = fit_rq_vae(vectors_ND, settings, seed)
    else:
        from tokenizer.quantizers.rq_kmeans import fit_rq_kmeans

        quantizer = fit_rq_kmeans(vectors_ND, settings, seed)
    return quantizer, quantizer.assign(vectors_ND)
