"""What shows reward hacking: figures of the generated items, of a fixed probe, and the rules that stop a training.

Shapes: B prompts, G generated items of a prompt, N items.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onerec.decoding.sampling import sample_items
from onerec.decoding.trie import Trie
from onerec.evaluation.metrics import popularity_percentiles
from onerec.model.onerec import OneRec
from rl.objectives import kl_to_reference
from rl.rollout import PromptBatch
from rl.scoring import score_items
from rl.settings import MonitorSettings

PROBE_SAMPLES = 16


class Window:
    """Sums over the rollouts since the last line of the log; processes add theirs up."""

    def __init__(self, counts_N: np.ndarray, device: torch.device) -> None:
        self._percentiles_N = torch.from_numpy(popularity_percentiles(counts_N)).to(device)
        self._exposures_N = torch.zeros(len(counts_N), dtype=torch.float64, device=device)
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)  # reward, groups, hits, groups without spread

    def add(
        self, items_BG: Tensor, present_BG: Tensor, rewards_BG: Tensor, targets_B: Tensor, spread_B: Tensor
    ) -> None:
        """Count one rollout."""
        self._exposures_N += torch.bincount(items_BG[present_BG], minlength=len(self._exposures_N))
        hits_B = ((items_BG == targets_B[:, None]) & present_BG).any(dim=1)
        mean_reward_B = rewards_BG.masked_fill(~present_BG, 0.0).sum(dim=1) / present_BG.sum(dim=1)
        self._sums[0] += mean_reward_B.sum()
        self._sums[1] += len(items_BG)
        self._sums[2] += hits_B.sum()
        self._sums[3] += (~spread_B).sum()

    def tensors(self) -> tuple[Tensor, Tensor]:
        """What is to be summed over processes."""
        return self._exposures_N, self._sums

    def figures(self, exposures_N: Tensor, sums: Tensor) -> dict[str, float]:
        """The line of the log."""
        reward, groups, hits, without_spread = sums.tolist()
        return {
            "reward": reward / groups,
            "hit_rate": hits / groups,
            "groups_without_spread": without_spread / groups,
            "coverage": float((exposures_N > 0).double().mean()),
            "popularity": float(exposures_N @ self._percentiles_N / exposures_N.sum()),
        }


@torch.no_grad()
def probe(model: OneRec, reference: OneRec, prompts: PromptBatch, trie: Trie, seed: int) -> dict[str, float]:
    """Legality of free samples, and entropy and KL to the reference of constrained ones, on fixed prompts.

    The same seed every time, so that lines differ by the policy alone.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    context = prompts.encode(model)
    free = sample_items(model, context, trie, PROBE_SAMPLES, generator, constrained=False)
    drawn = sample_items(model, context, trie, PROBE_SAMPLES, generator)
    scores = score_items(model, context, drawn.items_BG, trie)
    expected = score_items(reference, prompts.encode(reference), drawn.items_BG, trie)
    return {
        "legality": float((free.items_BG >= 0).double().mean()),
        "entropy": float(scores.entropies_BG.mean()),
        "kl": float(kl_to_reference(scores.log_probs_BG, expected.log_probs_BG).mean()),
    }


@dataclass(frozen=True)
class Baseline:
    """What the pre-trained model reached, against which the rules measure."""

    metric: float
    legality: float


def find_breach(
    settings: MonitorSettings, baseline: Baseline, first_coverage: float, figures: dict[str, float], metric: str
) -> str | None:
    """The first stop rule that the figures break, as a sentence; None where all hold."""
    rules = (
        ("coverage", figures["coverage"], first_coverage * settings.min_coverage_ratio),
        ("legality", figures["legality"], baseline.legality * settings.min_legality_ratio),
        (f"held-out {metric}", figures[f"eval_{metric}"], baseline.metric * (1 - settings.max_metric_drop)),
    )
    for name, found, least in rules:
        if found < least:
            return f"{name}: found {found:.4f}, expected at least {least:.4f}"
    return None
