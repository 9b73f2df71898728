"""SASRec (Kang & McAuley 2018, arXiv 1808.09781) with full cross-entropy or sampled softmax: the honest bar.

Departures from the paper:
1. The loss is a softmax over the whole catalogue or over uniformly sampled negatives, not binary cross-entropy with
   one negative: this alone moves Recall@10 on Beauty by a half (arXiv 2508.06450).
2. Batches hold histories of like length, padded on the right, instead of all padded to the maximum.

The network, with departures of its own, is `onerec.model.sasrec`.

Shapes: B batch, P targets a row, S history length in items, M targets, D width, n negatives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from kernels.catalogue_losses import FactoredLogits, catalogue_losses
from kernels.denormals import flushed_denormals
from onerec.baselines.scoring import rank_scores
from onerec.data.batches import IGNORED_TARGET, TrainingWindows, bucketed_batches, many_target_windows
from onerec.data.histories import Histories
from onerec.errors import DataError
from onerec.evaluation.recommender import Ranking
from onerec.model.sasrec import SasRecBlockKind, SasRecNetwork, SasRecShape
from tokenizer.settings import Settings


class SasRecSettings(Settings):
    """Shape and training of SASRec; the eSASRec study's values (arXiv 2508.06450) are named where it gives them."""

    loss: Literal["cross_entropy", "sampled_softmax"] = Field("cross_entropy", description="over all items or a sample")
    num_negatives: int = Field(256, ge=1, description="uniform negatives a target (study: 256)")
    width: int = Field(64, ge=1, description="model width (study: 64 to 256)")
    num_blocks: int = Field(2, ge=1, description="attention blocks (paper: 2)")
    num_heads: int = Field(1, ge=1, description="attention heads (paper: 1)")
    block: SasRecBlockKind = Field(
        "original", description="original: only queries are normalised, and kept in the residual; pre_norm: GPT-like"
    )
    positions: Literal["from_end", "from_start"] = Field("from_end", description="which item has position 0")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of activations dropped (study: 0.2)")
    max_history_items: int = Field(50, ge=1, description="newest items read (paper, study: 50)")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam, constant (paper, study: 1e-3)")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    max_positions_per_step: int = Field(1024, ge=1, description="history positions a step (about 128 Amazon users)")
    epochs: int = Field(60, ge=1, description="at most so many passes (study: 200)")
    evaluate_every_epochs: int = Field(5, ge=1, description="passes between validations")
    patience: int = Field(4, ge=1, description="validations without improvement before training stops")
    seed: int = Field(0, ge=0, description="of weights, dropout, negatives and order; the run's is added to it")

    @property
    def shape(self) -> SasRecShape:
        """What of the settings the network is made by."""
        own = {field.name: getattr(self, field.name) for field in fields(SasRecShape)}
        return SasRecShape(**own)


Validate = Callable[["SasRec"], float]


@dataclass
class _Best:
    score: float = float("-inf")
    epoch: int = 0
    weights: dict[str, Tensor] | None = None


class SasRec:
    """The trained baseline as a recommender."""

    def __init__(self, network: SasRecNetwork, settings: SasRecSettings) -> None:
        self.network, self.settings = network, settings
        self.name = "sasrec" if settings.loss == "cross_entropy" else "sasrec-sampled"

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())

    @classmethod
    @flushed_denormals()
    def fit(cls, histories: Histories, num_items: int, settings: SasRecSettings, validate: Validate) -> Self:
        """Train on the training events; keep the weights of the best validation, stop when it no longer improves.

        Args:
            validate: maps the recommender in its present state to a score, higher is better.

        Raises:
            DataError: no user has two training events.
        """
        torch.manual_seed(settings.seed)
        sasrec = cls(SasRecNetwork(num_items, settings.shape), settings)
        windows = _windows_with_history(histories, settings.max_history_items, sasrec.name)
        optimizer = torch.optim.AdamW(
            sasrec.network.parameters(),
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        best = _Best()
        with tqdm(total=settings.epochs, desc=f"train {sasrec.name}", unit="epoch") as progress:
            for epoch in range(settings.epochs):
                loss = _train_epoch(sasrec.network, optimizer, windows, settings, epoch)
                progress.update()
                progress.set_postfix(loss=f"{loss:.3f}", validation=f"{best.score:.4f}")
                if (epoch + 1) % settings.evaluate_every_epochs == 0 or epoch + 1 == settings.epochs:
                    score = validate(sasrec)
                    if score > best.score:
                        weights = {name: tensor.clone() for name, tensor in sasrec.network.state_dict().items()}
                        best = _Best(score, epoch, weights)
                    elif epoch - best.epoch >= settings.patience * settings.evaluate_every_epochs:
                        break
        assert best.weights is not None
        sasrec.network.load_state_dict(best.weights)
        return sasrec

    @torch.inference_mode()
    def recommend(self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool) -> Ranking:
        """Score the catalogue by the state of the newest item; users without history get the mean item's order."""
        self.network.eval()
        recent = [np.asarray(history[-self.settings.max_history_items :], dtype=np.int64) for history in histories]
        lengths_B = torch.tensor([len(items) for items in recent])
        items_BS = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(items) for items in recent], batch_first=True)
        rows = torch.arange(len(recent))
        if items_BS.size(1) == 0:
            states_BD = self.network.items.weight.mean(dim=0).expand(len(recent), -1)
        else:
            states_BD = self.network(items_BS, lengths_B)[rows, (lengths_B - 1).clamp(min=0)]
            states_BD = torch.where(lengths_B[:, None] > 0, states_BD, self.network.items.weight.mean(dim=0))
        return rank_scores((states_BD @ self.network.items.weight.T).numpy(), histories, k, exclude_seen)


def _windows_with_history(histories: Histories, max_history_items: int, name: str) -> TrainingWindows:
    """Training windows, less those of a lone first event, which has nothing to be predicted from."""
    windows = many_target_windows(histories, max_history_items)
    kept = windows.num_positions > 1
    if not kept.any():
        raise DataError(
            f"{name}: found no user with two training events, expected at least one. "
            "Lower the filters, add data, or leave this baseline out."
        )
    return replace(
        windows,
        starts=windows.starts[kept],
        stops=windows.stops[kept],
        first_targets=windows.first_targets[kept],
    )


def _train_epoch(
    network: SasRecNetwork,
    optimizer: torch.optim.Optimizer,
    windows: TrainingWindows,
    settings: SasRecSettings,
    epoch: int,
) -> float:
    """Mean loss of the steps of one pass."""
    network.train()
    shapes = windows.num_positions, windows.num_untrained_positions
    batches = bucketed_batches(*shapes, settings.max_positions_per_step, settings.seed, epoch)
    return float(np.mean([_step(network, optimizer, windows.collate(rows), settings) for rows in batches]))


def _step(
    network: SasRecNetwork, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], settings: SasRecSettings
) -> float:
    items_BS, lengths_B = (batch["input_ids"] - 1).clamp(min=0), (batch["input_ids"] != 0).sum(dim=1)
    targets_BP = batch["target_items"][:, -items_BS.size(1) :]  # without a start position, the first item is no target
    has_target_BP = targets_BP != IGNORED_TARGET
    states_MD = network(items_BS, lengths_B)[:, -targets_BP.size(1) :][has_target_BP]
    targets_M = targets_BP[has_target_BP]
    if settings.loss == "cross_entropy":
        loss = catalogue_losses([FactoredLogits(states_MD, network.items.weight)], targets_M).sum()
    else:
        loss = sampled_softmax(states_MD, targets_M, network.items, settings.num_negatives)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def sampled_softmax(states_MD: Tensor, targets_M: Tensor, items: nn.Embedding, num_negatives: int) -> Tensor:
    """Cross-entropy of each target among uniformly sampled negatives; one that equals the target does not count."""
    negatives_Mn = torch.randint(items.num_embeddings, (len(targets_M), num_negatives), device=states_MD.device)
    positive_M1 = (states_MD * items(targets_M)).sum(dim=-1, keepdim=True)
    negative_Mn = torch.bmm(items(negatives_Mn), states_MD.unsqueeze(-1)).squeeze(-1)
    negative_Mn = negative_Mn.masked_fill(negatives_Mn == targets_M[:, None], float("-inf"))
    return F.cross_entropy(torch.cat([positive_M1, negative_Mn], dim=1), torch.zeros_like(targets_M))
