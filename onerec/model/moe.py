"""Mixture-of-experts feed-forward: SwiGLU experts, top-k routing, loss-free balancing, no token dropped.

Technical report (arXiv 2506.13695), sections 2.3 and 3.2; balancing after Wang et al. 2024 (arXiv 2408.15664, section
2): a token's experts are the top k of score + bias, their outputs are weighed by the scores alone, and after each
optimizer step the bias of an expert moves by a fixed rate towards the mean load. The bias has no gradient and the loss
no further term. Scores are sigmoids and weigh as they are, as in that paper; `router_score: softmax` is DeepSeekMoE's
(arXiv 2401.06066), `normalise_gates` DeepSeek-V3's (arXiv 2412.19437, section 2.1.2), which OneRec-V2 follows.

Departures:
1. The report does not state its router's score, nor the rate: the rate is the 0.001 of arXiv 2408.15664.
2. Loads are counted over the whole optimizer step, all processes and accumulated batches; a forward that activation
   checkpointing runs twice counts twice for every expert alike, which moves no bias otherwise.

Shapes: T tokens, D width, E experts, k experts of a token, A = T * k assignments, F inner width of an expert,
R routers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from kernels.grouped_products import grouped_product
from kernels.routed_products import routed_product
from onerec.model.configuration import OneRecConfig
from onerec.model.layers import FeedForward


class Router(nn.Module):
    """Scores of a token for each expert, in float32, and the choice of its k experts by score + bias."""

    bias_E: Tensor

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.num_chosen = config.experts_per_token
        self.over_all = config.router_score == "softmax"
        self.normalised = config.normalise_gates
        self.weight_ED = nn.Parameter(torch.empty(config.num_experts, config.d_model))
        self.register_buffer("bias_E", torch.zeros(config.num_experts))
        # Not a buffer: DistributedDataParallel would put the main process's count in place of each other's.
        self._load_E: Tensor | None = None

    def forward(self, x_TD: Tensor, counted_T: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Chosen experts and their weights, both (T, k); `counted_T` marks tokens that count as load, None for all."""
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.float(), self.weight_ED.float())
        scores_TE = logits_TE.softmax(dim=-1) if self.over_all else logits_TE.sigmoid()
        chosen_Tk = (scores_TE.detach() + self.bias_E).topk(self.num_chosen, dim=-1).indices
        weights_Tk = scores_TE.gather(1, chosen_Tk)
        if self.normalised:
            weights_Tk = weights_Tk / weights_Tk.sum(dim=-1, keepdim=True)
        if self.training:
            load_E = count_choices(chosen_Tk, len(self.bias_E), counted_T)
            self._load_E = load_E if self._load_E is None else self._load_E + load_E
        return chosen_Tk, weights_Tk.to(x_TD.dtype)

    def take_load(self) -> Tensor:
        """Tokens of each expert (E,), int64, in training forwards since the last call."""
        load_E = self._load_E
        self._load_E = None
        return torch.zeros_like(self.bias_E, dtype=torch.int64) if load_E is None else load_E

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Keep the bias in float32 whatever the weights become: in bfloat16 its small steps would be lost."""
        exact_E = self.bias_E
        super()._apply(fn, recurse)
        if self.bias_E.dtype != exact_E.dtype:
            self.bias_E = exact_E.to(self.bias_E.device)
        return self


class Experts(nn.Module):
    """SwiGLU feed-forwards side by side, each computed for its own group of rows."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        shape = config.num_experts, config.d_model, config.expert_d_ff
        self.inner_EDF = nn.Parameter(torch.empty(shape[0], shape[1], 2 * shape[2]))  # gates, then values
        self.output_EFD = nn.Parameter(torch.empty(shape[0], shape[2], shape[1]))

    def forward(self, x_TD: Tensor, tokens_A: Tensor, counts_E: Tensor) -> Tensor:
        """Tokens `tokens_A`, sorted by expert, `counts_E` of them each -> (A, D)."""
        inner_AF = routed_product(x_TD, self.inner_EDF.to(x_TD.dtype), counts_E, tokens_A)
        gates_AF, values_AF = inner_AF.chunk(2, dim=-1)
        return grouped_product(F.silu(gates_AF) * values_AF, self.output_EFD.to(x_TD.dtype), counts_E)


class MixtureOfExperts(nn.Module):
    """Routed experts, weighed and summed, and shared ones that every token goes through."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)
        shared_width = config.num_shared_experts * config.expert_d_ff  # the sum of SwiGLUs is a wider one
        self.shared = FeedForward(config.d_model, shared_width, "swiglu") if shared_width else None

    def forward(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """(..., D) -> (..., D); `counted` (...) marks tokens that count as load, None for all."""
        x_TD = x.flatten(0, -2)
        chosen_Tk, weights_Tk = self.router(x_TD, None if counted is None else counted.flatten())
        order_A = chosen_Tk.flatten().argsort(stable=True)
        tokens_A = order_A // chosen_Tk.size(1)
        counts_E = count_choices(chosen_Tk, len(self.router.bias_E))
        # index_select and index_add: several times as fast on a CPU as indices in brackets.
        mixed_AD = self.experts(x_TD, tokens_A, counts_E)
        mixed_AD = mixed_AD * weights_Tk.flatten().index_select(0, order_A)[:, None]
        start_TD = torch.zeros_like(x_TD) if self.shared is None else self.shared(x_TD)
        return start_TD.index_add(0, tokens_A, mixed_AD).view_as(x)


def count_choices(chosen_Tk: Tensor, num_experts: int, counted_T: Tensor | None = None) -> Tensor:
    """How often each expert was chosen (E,), int64, by the tokens that count; without waiting for the device."""
    ones_Tk = torch.ones_like(chosen_Tk) if counted_T is None else counted_T[:, None].expand_as(chosen_Tk).long()
    counts_E = torch.zeros(num_experts, dtype=torch.int64, device=chosen_Tk.device)
    return counts_E.index_add_(0, chosen_Tk.flatten(), ones_Tk.flatten())


def make_feed_forward(config: OneRecConfig, block: int, in_context: bool) -> nn.Module:
    """The feed-forward of a stack's block number `block`: dense, or experts where the configuration has them."""
    stack_has_experts = config.num_experts > 0 and (config.experts_in_context or not in_context)
    if stack_has_experts and block >= config.num_dense_blocks:
        return MixtureOfExperts(config)
    return FeedForward(config.d_model, config.d_ff, config.activation)


def feed_forward(layer: nn.Module, x: Tensor, counted: Tensor | None) -> Tensor:
    """Apply either kind; only experts count tokens."""
    mixed: Tensor = layer(x, counted) if isinstance(layer, MixtureOfExperts) else layer(x)
    return mixed


@torch.no_grad()
def balance_experts(model: nn.Module, rate: float) -> Tensor | None:
    """Move the routers' biases, b_i += rate * sign(mean load - load_i), by the loads since the last call.

    To be called after each optimizer step, by all processes together: loads are summed, so that biases stay equal.

    Returns:
        The loads (R, E), int64, for `load_statistics`; None where the model has no experts.
    """
    routers = [module for module in model.modules() if isinstance(module, Router)]
    if not routers:
        return None
    loads_RE = torch.stack([router.take_load() for router in routers])
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(loads_RE)
    for router, load_E in zip(routers, loads_RE, strict=True):
        router.bias_E += rate * (load_E.sum() - len(load_E) * load_E).sign()
    return loads_RE


def load_statistics(loads_RE: Tensor) -> dict[str, float]:
    """The largest and the smallest load of an expert as multiples of its layer's mean: both 1 where loads are even.

    Of all layers the worst counts. 0.2 above or below 1 is a load within 20 % of even.
    """
    shares_RE = loads_RE / loads_RE.double().mean(dim=1, keepdim=True).clamp(min=1e-9)
    return {"expert_load_max": shares_RE.max().item(), "expert_load_min": shares_RE.min().item()}
