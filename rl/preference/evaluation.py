"""The reward model on the held-out events, beside popularity and matrix factorisation.

Shapes: M held-out candidates (events, and random items beside them), T towers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from onerec.data.settings import FeedbackKind
from onerec.model.preference.contexts import EventReader
from onerec.model.preference.network import PreferenceModel
from onerec.model.preference.signals import Signal
from onerec.model.preference.towers import WatchTimeTower
from rl.preference.baselines import MatrixFactorisation
from rl.preference.metrics import auc, expected_calibration_error, grouped_auc, log_loss, time_errors
from rl.preference.training import Candidates, CandidateSampler

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_EVENTS_AT_A_TIME = 1024


@dataclass(frozen=True)
class HeldOut:
    """What happened in the held-out events, and what was foretold."""

    users_M: np.ndarray
    values_MT: np.ndarray
    probabilities_MT: np.ndarray
    expected_MT: np.ndarray
    pscores_M: np.ndarray
    quantiles_MTQ: np.ndarray  # NaN where the tower is none of watch time
    popularity_M: np.ndarray
    factorised_MT: np.ndarray


def predict(
    model: PreferenceModel,
    reader: EventReader,
    sampler: CandidateSampler,
    rows: np.ndarray,
    popularity_N: np.ndarray,
    factorisation: MatrixFactorisation,
) -> HeldOut:
    """Score the events of these rows, and the same random items every time."""
    generator = np.random.default_rng(0)
    parts = []
    for first in range(0, len(rows), _EVENTS_AT_A_TIME):
        candidates = sampler.draw(rows[first : first + _EVENTS_AT_A_TIME], generator)
        parts.append(_predict_batch(model, reader, candidates, popularity_N, factorisation))
    return HeldOut(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@torch.inference_mode()
def _predict_batch(
    model: PreferenceModel,
    reader: EventReader,
    candidates: Candidates,
    popularity_N: np.ndarray,
    factorisation: MatrixFactorisation,
) -> tuple[np.ndarray, ...]:
    """The columns of `HeldOut`."""
    items_BG, num_towers = candidates.items_BG, len(model.signals)
    scores = model(reader.contexts(candidates.rows_B, model.device), torch.from_numpy(items_BG).to(model.device))
    quantiles_BGTQ = np.full((*items_BG.shape, num_towers, len(QUANTILES)), np.nan)
    for place, (tower, prediction) in enumerate(zip(model.towers, scores.towers, strict=True)):
        if isinstance(tower, WatchTimeTower):
            watched = tower.distribution(prediction.raw_BGR)
            found = [watched.quantile(probability).cpu().numpy() for probability in QUANTILES]
            quantiles_BGTQ[:, :, place] = np.stack(found, axis=-1)
    probabilities_BGT = torch.stack([tower.probability_BG for tower in scores.towers], dim=-1).double()
    expected_BGT = torch.stack([tower.expected_BG for tower in scores.towers], dim=-1)
    return (
        np.repeat(candidates.users_B, items_BG.shape[1]),
        candidates.values_BGT.reshape(-1, num_towers),
        probabilities_BGT.cpu().numpy().reshape(-1, num_towers),
        expected_BGT.cpu().numpy().reshape(-1, num_towers),
        scores.pscores.cpu().numpy().ravel(),
        quantiles_BGTQ.reshape(-1, num_towers, len(QUANTILES)),
        popularity_N[items_BG].ravel(),
        factorisation.scores(candidates).reshape(-1, num_towers),
    )


def summarize(held_out: HeldOut, signals: tuple[Signal, ...]) -> dict[str, dict[str, Any]]:
    """Figures of every tower, by its column."""
    return {signal.name: _tower_figures(held_out, signal, place) for place, signal in enumerate(signals)}


def _tower_figures(held_out: HeldOut, signal: Signal, place: int) -> dict[str, Any]:
    values_M = held_out.values_MT[:, place]
    known = ~np.isnan(values_M)
    labels, users = signal.labels(values_M[known]), held_out.users_M[known]
    figures: dict[str, Any] = {
        "kind": signal.kind.value,
        "positive_from": signal.positive_from,
        "examples": len(labels),
    }
    if not len(labels):
        return figures
    probabilities = held_out.probabilities_MT[known, place]
    good = labels if signal.is_good else 1 - labels
    rivals = {
        "popularity": held_out.popularity_M[known] * (1 if signal.is_good else -1),
        "matrix factorisation": held_out.factorised_MT[known, place],
    }
    gauc, num_users = grouped_auc(labels, probabilities, users)
    figures |= {
        "positives": float(labels.mean()),
        "auc": auc(labels, probabilities),
        "gauc": gauc,
        "gauc_users": num_users,
        "gauc_of_pscore": grouped_auc(good, held_out.pscores_M[known], users)[0],
        "calibration_error": expected_calibration_error(labels, probabilities),
        "log_loss": log_loss(labels, probabilities),
        "gauc_of": {name: grouped_auc(labels, scores, users)[0] for name, scores in rivals.items()},
    }
    if signal.kind is FeedbackKind.SECONDS:
        figures["watch_time"] = _watch_time_figures(held_out, signal, place, known)
    return figures


def _watch_time_figures(held_out: HeldOut, signal: Signal, place: int, known: np.ndarray) -> dict[str, Any]:
    """Errors of the expected time beside those of the training mean, and the share of times below each quantile."""
    seconds = held_out.values_MT[known, place].astype(np.float64)
    quantiles_Q = held_out.quantiles_MTQ[known, place]
    below_Q = (seconds[:, None] <= quantiles_Q).mean(axis=0)
    return {
        **time_errors(seconds, held_out.expected_MT[known, place]),
        "of_median": time_errors(seconds, quantiles_Q[:, QUANTILES.index(0.5)]),
        "of_training_mean": time_errors(seconds, np.full(len(seconds), signal.mean)),
        "share_below_quantile": dict(zip(map(str, QUANTILES), below_Q.tolist(), strict=True)),
    }
