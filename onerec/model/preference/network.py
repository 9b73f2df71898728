"""The reward model: towers for all feedback over one backbone, and the P-Score that fuses them.

The technical report of OneRec (arXiv 2506.13695, "preference reward"): a ranking model in the manner of SIM with one
tower a target, each trained by its own cross-entropy; a last MLP reads the towers' hidden states and predictions, and
its output is trained by the weighted sum of the same cross-entropies:

    p      = sigmoid(MLP([h_1, q_1, ..., h_T, q_T]))            h_t hidden state, q_t probability of tower t
    loss   = sum_t loss_t + sum_t w_t BCE(p, y_t)               y_t label of column t, each mean over what was recorded

One scalar, whose ranking of items is learnt from all feedback at once, in place of a formula written by hand.

Departures:
1. Towers of counts and seconds have likelihoods of their own (Poisson; the mixture of EGMN). y_t is then the answer to
   the column's yes-or-no question, see `rl.preference.signals`, and q_t its probability.
2. For columns by which users say no, such as skips, 1 - y_t stands in the P-Score's cross-entropy.
3. A user is what the history shows: no user id, no profile, no time of day. So newcomers are like others, and whoever
   has a history can be scored.
4. An event of the history carries what the user made of the item, each column's value in a bin.

Shapes: B requests, S history events, G items of a request, D width, T towers, N items, C features of an item.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from onerec.model.preference.backbones import ITEM_TOKENS, Backbone, build_backbone
from onerec.model.preference.contexts import Contexts
from onerec.model.preference.settings import BackboneSettings, WatchTimeSettings
from onerec.model.preference.signals import Signal
from onerec.model.preference.towers import Prediction, Tower, build_tower

PSCORE = "pscore"
_EMBEDDING_STD = 0.05


class PreferenceConfig(PreTrainedConfig):
    """Shape of a reward model.

    Args:
        num_items: items of the catalogue.
        feature_sizes: values of each feature of an item.
        signals: the columns with a tower, as `Signal` dumps them.
        backbone, watch_time: settings of the same names, as they dump themselves.
        tower_width: hidden width of a tower and of the fusion.
        catalogue_hash: identity of the catalogue whose item indices the model takes.
    """

    model_type = "onerec_preference"

    def __init__(
        self,
        num_items: int = 1,
        feature_sizes: Sequence[int] = (1,),
        signals: Sequence[dict[str, Any]] = (),
        backbone: dict[str, Any] | None = None,
        watch_time: dict[str, Any] | None = None,
        tower_width: int = 32,
        catalogue_hash: str = "",
        **kwargs: Any,
    ) -> None:
        self.num_items = num_items
        self.feature_sizes = list(feature_sizes)
        self.signals = list(signals)
        self.backbone = backbone or BackboneSettings().model_dump()
        self.watch_time = watch_time or WatchTimeSettings().model_dump()
        self.tower_width = tower_width
        self.catalogue_hash = catalogue_hash
        super().__init__(**kwargs)


@dataclass(frozen=True)
class Scores:
    """What the model says of each item of each request."""

    towers: list[Prediction]
    pscore_logits_BG: Tensor

    @property
    def pscores(self) -> Tensor:
        """The P-Score (B, G), between 0 and 1."""
        return self.pscore_logits_BG.sigmoid()


class PreferenceModel(PreTrainedModel):
    """Scores items for histories."""

    config_class = PreferenceConfig
    config: PreferenceConfig
    base_model_prefix = "model"
    main_input_name = "items_BG"
    backbone: Backbone
    feature_rows_NC: Tensor
    bin_rows_T: Tensor

    def __init__(self, config: PreferenceConfig) -> None:
        super().__init__(config)
        self.signals = tuple(Signal.model_validate(signal) for signal in config.signals)
        backbone = BackboneSettings.model_validate(config.backbone)
        watch_time = WatchTimeSettings.model_validate(config.watch_time)
        self.max_history_items = backbone.max_history_items
        self.identities = nn.Embedding(config.num_items, backbone.width)
        self.features = nn.Embedding(sum(config.feature_sizes), backbone.width)
        self.bins = nn.Embedding(sum(signal.num_bins for signal in self.signals), backbone.width)
        self.ages = nn.Embedding(backbone.max_history_items + 1, backbone.width)  # the last: before all events
        self.event = nn.Sequential(
            nn.LayerNorm(backbone.width),
            nn.Linear(backbone.width, backbone.hidden_width),
            nn.GELU(),
            nn.Linear(backbone.hidden_width, backbone.width),
        )
        self.dropout = nn.Dropout(backbone.dropout)
        self.backbone = build_backbone(backbone)
        width = config.tower_width
        shape = (self.backbone.out_width, width, backbone.dropout, watch_time)
        self.towers = nn.ModuleList(build_tower(signal, *shape) for signal in self.signals)
        self.fusion = nn.Sequential(
            nn.Linear(len(self.signals) * (width + 1), width),
            nn.GELU(),
            nn.Dropout(backbone.dropout),
            nn.Linear(width, 1),
        )
        self.register_buffer(
            "feature_rows_NC", torch.zeros(config.num_items, len(config.feature_sizes), dtype=torch.long)
        )
        bin_rows_T = np.cumsum([0, *(signal.num_bins for signal in self.signals[:-1])])
        self.register_buffer("bin_rows_T", torch.from_numpy(bin_rows_T).long())
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Embeddings start small: what a rare item keeps of its random start is noise. All else starts as torch's."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=_EMBEDDING_STD)

    def set_features(self, features_NC: np.ndarray) -> None:
        """Store what the items are like, see `rl.preference.features`."""
        first_rows_C = np.cumsum([0, *self.config.feature_sizes[:-1]])
        self.feature_rows_NC.copy_(torch.from_numpy(features_NC + first_rows_C))

    def forward(self, contexts: Contexts, items_BG: Tensor) -> Scores:
        """Score G items for each of B histories."""
        history_BSD, present_BS = self._history(contexts)
        x_BGO = self.backbone(history_BSD, present_BS, self.dropout(self._item_tokens(items_BG)))
        predictions = [tower(x_BGO) for tower in self.towers]
        read = [part for tower in predictions for part in (tower.hidden_BGH, tower.probability_BG[..., None])]
        return Scores(predictions, self.fusion(torch.cat(read, dim=-1)).squeeze(-1))

    def loss(self, scores: Scores, values_BGT: Tensor) -> Tensor:
        """The sum over towers of their losses and of the P-Score's; values are NaN where nothing was recorded."""
        parts = zip(self.towers, scores.towers, values_BGT.unbind(dim=-1), strict=True)
        losses = [
            _tower_loss(cast(Tower, tower), prediction, scores.pscore_logits_BG, values_BG)
            for tower, prediction, values_BG in parts
        ]
        return torch.stack(losses).sum()

    def _item_tokens(self, items: Tensor) -> Tensor:
        """Tokens (..., 2, D) of items (...), each looked up once: their own vectors, and those of their features."""
        known_U, places = items.unique(return_inverse=True)
        alike_UD = self.features(self.feature_rows_NC[known_U]).sum(dim=1)
        tokens_UMD = torch.stack([self.identities(known_U), alike_UD], dim=1)
        assert tokens_UMD.size(1) == ITEM_TOKENS
        return tokens_UMD[places]

    def _history(self, contexts: Contexts) -> tuple[Tensor, Tensor]:
        """Vectors (B, S + 1, D) of the events and of what was before them, and which are there."""
        num_requests, num_events = contexts.items_BS.shape
        ages_S = torch.arange(num_events, device=contexts.items_BS.device)
        made_of_them_BSD = self.bins(contexts.bins_BST + self.bin_rows_T).sum(dim=-2)
        events_BSD = self._item_tokens(contexts.items_BS).sum(dim=-2) + made_of_them_BSD + self.ages(ages_S)
        events_BSD = events_BSD + self.event(events_BSD)  # an item that was liked is more than the item and a like
        before_B1D = self.ages.weight[-1].expand(num_requests, 1, -1)
        present_BS = F.pad(contexts.present_BS, (0, 1), value=True)
        return torch.cat([events_BSD, before_B1D], dim=1), present_BS


def _tower_loss(tower: Tower, prediction: Prediction, pscore_logits_BG: Tensor, values_BG: Tensor) -> Tensor:
    """A tower's own loss and its share in the P-Score's, each the mean over recorded values."""
    signal, recorded_BG, known_BG = tower.signal, ~values_BG.isnan(), values_BG.nan_to_num()
    says_good_BG = ((known_BG >= signal.positive_from) == signal.is_good).to(pscore_logits_BG.dtype)
    fused_BG = F.binary_cross_entropy_with_logits(pscore_logits_BG, says_good_BG, reduction="none")
    both_BG = tower.loss(prediction.raw_BGR, known_BG) + signal.pscore_weight * fused_BG
    return (both_BG * recorded_BG).sum() / recorded_BG.sum().clamp(min=1)
