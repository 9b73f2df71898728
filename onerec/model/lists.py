"""Lists of items decoded as one sequence: the session-wise generation of OneRec v1 (arXiv 2502.18965).

The decoder reads [BOS, codes of item 1, BOS, codes of item 2, ...]: each item is opened by a BOS and generated after
the whole items before it, so that a list can be coherent where single items, each the best on its own, are alike. The
first item is generated as by a model of single items.

Departures:
1. A token's vector is the code's (or BOS), its level's, and one of the item's place in the list.
2. The loss is the mean over the list's items of what single items cost, where the paper adds them up.
3. The terms of logits for items that the history holds know nothing of the list's own items: its decoding never
   repeats one. The auxiliary item head predicts all items of a list from the context before it.

Shapes: B batch, m items of a list, S context positions, M targets in all, L levels, T = m * (L + 1) - 1 tokens, D
width, W beams, K codes of a level.
"""

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onerec.errors import ConfigError
from onerec.model.configuration import OneRecConfig
from onerec.model.context import Context
from onerec.model.decoder import Decoder, DecoderCache
from onerec.model.layers import residual_dtype
from onerec.model.target_loss import TargetPass

if TYPE_CHECKING:
    from onerec.model.onerec import OneRec


class FurtherItems(nn.Module):
    """What a list needs beside the vectors of a single item: places from the second on, and last codes, read now."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.first_row = sum(config.codes_per_level[:-1])
        self.places = nn.Embedding(config.session_items - 1, config.d_model)
        self.last_codes = nn.Embedding(config.codes_per_level[-1], config.d_model)
        self.last_level = nn.Embedding(1, config.d_model)

    def last(self, codes: Tensor) -> Tensor:
        """Codes (...) of the last level -> (..., D)."""
        return self.last_codes(codes) + self.last_level.weight[0]

    def place(self, place: int) -> Tensor | float:
        """What the tokens of an item at a place, from 0 on, have in common: (D,)."""
        return self.places.weight[place - 1] if place else 0.0


class ListDecoder(Decoder):
    """A decoder that can go on after an item; without further items it is a decoder of single ones."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__(config)
        self.further = FurtherItems(config) if config.session_items > 1 else None

    def forward(
        self,
        code_rows_BPT: Tensor,
        newest_BPD: Tensor,
        keys: tuple[Tensor, ...],
        values: tuple[Tensor, ...],
        visible: Tensor | None,
        counted_BP: Tensor | None = None,
    ) -> Tensor:
        """As a decoder of single items, which are the first ones of lists; not to train by.

        Raises:
            ConfigError: in training, where the items after the first would learn nothing.
        """
        if self.training and self.further is not None:
            raise ConfigError(
                "a model of lists: found single items to train on, expected whole lists. Train it on data.sessions, or "
                "set model.session_items to 0."
            )
        return super().forward(code_rows_BPT, newest_BPD, keys, values, visible, counted_BP)

    def read_list(
        self,
        code_rows_BmL: Tensor,
        newest_B1D: Tensor,
        keys: tuple[Tensor, ...],
        values: tuple[Tensor, ...],
        visible: Tensor,
        counted_B1: Tensor,
    ) -> Tensor:
        """Teacher forcing over whole lists: the states (B, m, L, D) that predict each code after all before it.

        Args:
            code_rows_BmL: codes as table rows.
            newest_B1D: the context state before the list, which every BOS may carry.
            visible: bool, broadcast to (B, H, T, S).
            counted_B1: the lists whose tokens count as load of experts.
        """
        x_BTD = self.dropout(self._tokens(code_rows_BmL, newest_B1D).to(residual_dtype(self.blocks)))
        x_B1TD = x_BTD[:, None]
        counted_B1T = counted_B1[..., None].expand(x_B1TD.shape[:-1])
        for number, (block, *context) in enumerate(zip(self._layers(), keys, values, strict=True)):
            x_B1TD = self.depth(number, x_B1TD, block(x_B1TD, *context, visible, counted_B1T))
        states_BTD = self.norm(x_B1TD[:, 0].to(self.norm.weight.dtype))
        num_items, num_levels = code_rows_BmL.shape[1:]
        if self.further is None:
            return states_BTD[:, None]
        return F.pad(states_BTD, (0, 0, 0, 1)).unflatten(1, (num_items, num_levels + 1))[:, :, :num_levels]

    def step_list(self, codes_BW: Tensor, place: int, level: int, context: Context, cache: DecoderCache) -> Tensor:
        """State (B, W, D) that predicts `level` of the item at a place from 1 on, after the code chosen before it."""
        assert self.further is not None
        if level:
            x_BWD = self.codes(codes_BW + self.first_rows[level - 1])
        else:
            self.read_token(self.further.last(codes_BW) + self.further.place(place - 1), context, cache)
            x_BWD = self._bos(context.newest_BD[:, None]).expand(-1, codes_BW.size(1), -1)
        return self.read_token(x_BWD + self.levels.weight[level] + self.further.place(place), context, cache)

    def _tokens(self, code_rows_BmL: Tensor, newest_B1D: Tensor) -> Tensor:
        """Vectors (B, T, D): of each item BOS and all its codes, but for the last code of all."""
        bos_BmD = self._bos(newest_B1D).expand(*code_rows_BmL.shape[:2], -1)
        items_BmLD = torch.cat([bos_BmD[:, :, None], self.codes(code_rows_BmL[..., :-1])], dim=2) + self.levels.weight
        if self.further is None:
            return items_BmLD[:, 0]
        last_BmD = self.further.last(code_rows_BmL[..., -1] - self.further.first_row)
        whole_BmlD = torch.cat([items_BmLD, last_BmD[:, :, None]], dim=2)
        whole_BmlD = whole_BmlD + F.pad(self.further.places.weight, (0, 0, 1, 0))[: bos_BmD.size(1), None]
        return whole_BmlD.flatten(1, 2)[:, :-1]


def list_step(
    model: "OneRec", codes_BW: Tensor | None, place: int, level: int, context: Context, cache: DecoderCache
) -> Tensor:
    """As `OneRec.decode_step`, for the item at `place` of a list; codes are None at the very beginning alone."""
    if place == 0:
        return model.decode_step(codes_BW, level, context, cache)
    assert codes_BW is not None
    assert isinstance(model.decoder, ListDecoder)
    states_BWD = model.decoder.step_list(codes_BW, place, level, context, cache)
    if level == 0:
        cache.prefixes_BW = torch.zeros_like(codes_BW)
    else:
        cache.prefixes_BW = cache.prefixes_BW * model.config.codes_per_level[level - 1] + codes_BW
    return model.code_heads(states_BWD, level, cache.prefixes_BW, context.catalogue).log_softmax(dim=-1)


class ListPass(TargetPass):
    """Lists (B, m) after whole histories, in the place of targets that follow one position each."""

    @cached_property
    def newest_states(self) -> Tensor:
        """The context state (B, m, D) before the list, for each of its items."""
        newest_B1D = self.model.states_before(self.states_BSD, self.mask_BS, 1, self.pathways)
        return newest_B1D.expand(-1, self.target_items_BP.size(1), -1)

    @cached_property
    def history(self) -> tuple[Tensor, Tensor]:
        """For each target what came before its list."""
        first = self.target_items_BP[:, :1]
        before = TargetPass(self.model, self.states_BSD, self.items_BS, self.mask_BS, first).history
        rows_M = self.has_target.nonzero(as_tuple=True)[0]
        return before[0][rows_M], before[1][rows_M]

    def hidden(self, paths_BP: Tensor) -> Tensor:
        """Decoder states (M, L, D) that have read the items of a list before each, and its own codes."""
        decoder = self.model.decoder
        assert isinstance(decoder, ListDecoder)
        keys, values = decoder.project_context(self.states_BSD)
        has_list_B1 = self.has_target.all(dim=1, keepdim=True)
        counted_B1 = has_list_B1 if self.counted is None else has_list_B1 & self.counted
        code_rows_BmL = self.model.encoder.code_rows_NL[paths_BP]
        visible = self.mask_BS[:, None, None, :]
        hidden_BmLD = decoder.read_list(code_rows_BmL, self.newest_states[:, :1], keys, values, visible, counted_B1)
        return hidden_BmLD[self.has_target]
