"""Backbones of the reward model: a user's history and an item in, one vector a pair out.

    attention  target attention over the history, then an MLP, as SIM's exact search unit (arXiv 2006.05639)
    mixer      the same features as tokens, mixed by shuffling parts of them, as RankMixer (arXiv 2507.15551)
    stack      history and item tokens in one causal Transformer, as OneTrans (arXiv 2510.26104)

Departures:
1. SIM searches a long history for events of the item's category first; here the newest events are all there are.
2. RankMixer groups features by meaning into tokens and has a mixture of experts; here each token is a projection of all
   features, with one dense feed-forward a token.
3. OneTrans drops history tokens from layer to layer and has tokens of user and request; here the stack is no pyramid
   and the tokens without a sequence are the item's two.

All of them compute a request's history once for all its items, and an item's vector does not depend on the others.

Shapes: B requests, S history events, G items of a request, D width, M tokens of an item, T tokens of the mixer,
H heads, d head width, F inner width, O outputs.
"""

from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.attention import attend
from onerec.model.layers import merge_heads, split_heads
from onerec.model.preference.settings import BackboneKind, BackboneSettings

ITEM_TOKENS = 2
"""Tokens of an item: its own vector, and that of what it is like."""


class Backbone(nn.Module, ABC):
    """Events come newest first; the last place, before all events, is always present."""

    out_width: int

    @abstractmethod
    def forward(self, history_BSD: Tensor, present_BS: Tensor, items_BGMD: Tensor) -> Tensor:
        """Histories (B, S, D) with a mask (B, S) and items (B, G, M, D) in, (B, G, O) out."""


class InterestFeatures(nn.Module):
    """What crosses a history with an item: the item's tokens, the events it attends to, their product, all events."""

    num_features = ITEM_TOKENS + 3

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        width = settings.width
        self.num_heads = settings.num_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, history_BSD: Tensor, present_BS: Tensor, items_BGMD: Tensor) -> Tensor:
        """Features (B, G, num_features * D)."""
        items_BGD = items_BGMD.sum(dim=2)
        keys, values = self.key_value(history_BSD).chunk(2, dim=-1)
        queries, keys, values = (split_heads(x, self.num_heads) for x in (self.query(items_BGD), keys, values))
        mixed = attend(queries, keys, values, present_BS[:, None, None])
        attended_BGD = self.output(merge_heads(mixed))
        counts_B1 = present_BS.sum(dim=1, keepdim=True)
        mean_BD = (history_BSD * present_BS[:, :, None]).sum(dim=1) / counts_B1
        crossed = [attended_BGD, attended_BGD * items_BGD, mean_BD[:, None].expand_as(items_BGD)]
        return torch.cat([*items_BGMD.unbind(dim=2), *crossed], dim=-1)


class AttentionBackbone(Backbone):
    """Target attention and an MLP."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        self.features = InterestFeatures(settings)
        widths = [InterestFeatures.num_features * settings.width] + settings.num_layers * [settings.hidden_width]
        layers: list[nn.Module] = [nn.LayerNorm(widths[0])]
        for inner, outer in pairwise(widths):
            layers += [nn.Linear(inner, outer), nn.GELU(), nn.Dropout(settings.dropout)]
        self.layers = nn.Sequential(*layers)
        self.out_width = widths[-1]

    def forward(self, history_BSD: Tensor, present_BS: Tensor, items_BGMD: Tensor) -> Tensor:
        return self.layers(self.features(history_BSD, present_BS, items_BGMD))


class TokenLinear(nn.Module):
    """A linear map of its own for every token."""

    def __init__(self, num_tokens: int, in_width: int, out_width: int) -> None:
        super().__init__()
        self.weight_TDF = nn.Parameter(torch.empty(num_tokens, in_width, out_width))
        self.bias_TF = nn.Parameter(torch.zeros(num_tokens, out_width))
        nn.init.normal_(self.weight_TDF, std=in_width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., T, D) -> (..., T, F)."""
        return torch.einsum("...td,tdf->...tf", x, self.weight_TDF) + self.bias_TF


class MixerBlock(nn.Module):
    """Token mixing without parameters, then a feed-forward of its own for every token; each with residual and norm."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        tokens, width, inner = settings.num_tokens, settings.width, settings.hidden_width
        self.mixing_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inner = TokenLinear(tokens, width, inner)
        self.output = TokenLinear(tokens, inner, width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_BGTD: Tensor) -> Tensor:
        """(B, G, T, D) -> (B, G, T, D)."""
        x_BGTD = self.mixing_norm(x_BGTD + mix_tokens(x_BGTD))
        return self.norm(x_BGTD + self.dropout(self.output(F.gelu(self.inner(x_BGTD)))))


def mix_tokens(x_BGTD: Tensor) -> Tensor:
    """Token t of the result is the t-th of T parts of every token, in order: a shuffle that sends each to each."""
    return x_BGTD.unflatten(-1, (x_BGTD.size(-2), -1)).transpose(-3, -2).flatten(-2)


class MixerBackbone(Backbone):
    """Token mixing over the features of target attention."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        self.num_tokens, self.out_width = settings.num_tokens, settings.width
        self.features = InterestFeatures(settings)
        self.split = nn.Linear(InterestFeatures.num_features * settings.width, settings.num_tokens * settings.width)
        self.blocks = nn.Sequential(*(MixerBlock(settings) for _ in range(settings.num_layers)))

    def forward(self, history_BSD: Tensor, present_BS: Tensor, items_BGMD: Tensor) -> Tensor:
        features = self.features(history_BSD, present_BS, items_BGMD)
        return self.blocks(self.split(features).unflatten(-1, (self.num_tokens, -1))).mean(dim=-2)


class StackBlock(nn.Module):
    """Causal attention and a feed-forward: one set of weights for all history tokens, one for each token of an item."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        width, inner = settings.width, settings.hidden_width
        self.num_heads, self.dropout = settings.num_heads, nn.Dropout(settings.dropout)
        self.attention_norm, self.norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.history_qkv, self.item_qkv = nn.Linear(width, 3 * width), TokenLinear(ITEM_TOKENS, width, 3 * width)
        self.history_output, self.item_output = nn.Linear(width, width), TokenLinear(ITEM_TOKENS, width, width)
        self.history_inner, self.item_inner = nn.Linear(width, inner), TokenLinear(ITEM_TOKENS, width, inner)
        self.history_last, self.item_last = nn.Linear(inner, width), TokenLinear(ITEM_TOKENS, inner, width)

    def forward(self, history_BSD: Tensor, present_BS: Tensor, items_BGMD: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams one block later."""
        queries, keys, values = (
            split_heads(x, self.num_heads) for x in self.history_qkv(self.attention_norm(history_BSD)).chunk(3, dim=-1)
        )
        own = self.item_qkv(self.attention_norm(items_BGMD)).unflatten(-1, (3, self.num_heads, -1)).unbind(dim=-3)
        read_BGMD = _attend_items(own, keys, values, present_BS)
        ages_S = torch.arange(history_BSD.size(1), device=history_BSD.device)
        visible = (ages_S >= ages_S[:, None]) & present_BS[:, None, None]  # newest first: later places are older
        read_BSD = merge_heads(attend(queries, keys, values, visible))
        history_BSD = history_BSD + self.dropout(self.history_output(read_BSD))
        items_BGMD = items_BGMD + self.dropout(self.item_output(read_BGMD))
        inner = F.gelu(self.history_inner(self.norm(history_BSD)))
        item_inner = F.gelu(self.item_inner(self.norm(items_BGMD)))
        return (
            history_BSD + self.dropout(self.history_last(inner)),
            items_BGMD + self.dropout(self.item_last(item_inner)),
        )


def _attend_items(own: tuple[Tensor, ...], keys_BHSd: Tensor, values_BHSd: Tensor, present_BS: Tensor) -> Tensor:
    """Each token of an item reads the whole history, and the item's tokens up to itself. (B, G, M, D).

    Args:
        own: queries, keys and values of the items, each (B, G, M, H, d).
    """
    queries, own_keys, own_values = own
    num_events, scale = keys_BHSd.size(2), queries.size(-1) ** -0.5
    history_scores = torch.einsum("bgmhd,bhsd->bghms", queries, keys_BHSd)
    history_scores = history_scores.masked_fill(~present_BS[:, None, None, None], float("-inf"))
    own_scores = torch.einsum("bgmhd,bgnhd->bghmn", queries, own_keys)
    later = torch.ones(own_scores.shape[-2:], dtype=torch.bool, device=own_scores.device).triu(1)
    own_scores = own_scores.masked_fill(later, float("-inf"))
    weights = (torch.cat([history_scores, own_scores], dim=-1) * scale).softmax(dim=-1)
    of_history, of_own = weights.split([num_events, weights.size(-1) - num_events], dim=-1)
    read = torch.einsum("bghms,bhsd->bgmhd", of_history, values_BHSd)
    return (read + torch.einsum("bghmn,bgnhd->bgmhd", of_own, own_values)).flatten(-2)


class StackBackbone(Backbone):
    """One stack over history and item tokens."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(StackBlock(settings) for _ in range(settings.num_layers))
        self.norm = nn.RMSNorm(settings.width)
        self.out_width = ITEM_TOKENS * settings.width

    def forward(self, history_BSD: Tensor, present_BS: Tensor, items_BGMD: Tensor) -> Tensor:
        for block in self.blocks:
            history_BSD, items_BGMD = block(history_BSD, present_BS, items_BGMD)
        return self.norm(items_BGMD).flatten(-2)


BACKBONES: dict[BackboneKind, type[Backbone]] = {
    "attention": AttentionBackbone,
    "mixer": MixerBackbone,
    "stack": StackBackbone,
}


def build_backbone(settings: BackboneSettings) -> Backbone:
    """The backbone of the settings."""
    return BACKBONES[settings.kind](settings)
