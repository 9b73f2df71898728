"""The papers' model sizes as named settings, and what they weigh.

Sources: technical report (arXiv 2506.13695), table 1 and section 3.2; OneRec-V2 (arXiv 2508.20900), tables 2 and 5 and
section 2.3. Three levels of 8192 codes; about 405 and 512 context positions, here one pathway of as many.

Assumed where they are silent or at odds:
1. Report: a dense feed-forward has two matrices. An expert is 2688 wide: section 3.2 says 2/3 * 4 * d_model in whole
   128s, of which this is the nearest; table 1 says 2048, which would leave 0.71B of the 0.935B. In the 2.633B model
   half of the blocks of each stack have experts: "designated blocks" by section 3.2, as many as meet the name.
2. V2: the feed-forward is SwiGLU of inner width 4 * d_model, which is within 8 % of the FLOPs of table 2 and gives the
   MoE model its 0.5B active parameters; `embed_dim` of table 5 is the width of an item's vector in the context.
3. Neither names a dropout or an auxiliary head: none.
"""

from dataclasses import dataclass
from typing import Any

import torch

from onerec.model.configuration import OneRecConfig
from onerec.model.moe import Experts
from onerec.model.onerec import OneRec
from onerec.model.settings import ModelSettings

CODES_PER_LEVEL = (8192, 8192, 8192)
_PLAIN: dict[str, Any] = {
    "dropout": 0.0,
    "item_head_weight": 0.0,
    "bos_reads_context": False,
    "prefix_vectors": False,
    "repeat_bias": False,
}


@dataclass(frozen=True)
class Preset:
    """A named size: its settings, the parameters that its paper reports, and where that says so."""

    model: ModelSettings
    reported_parameters: float
    source: str
    learning_rate: float | None = None

    def configuration(self, num_items: int = 1) -> OneRecConfig:
        """The model's configuration over the papers' codes."""
        return self.model.configuration(CODES_PER_LEVEL, num_items)

    def run_sections(self) -> dict[str, Any]:
        """The sections of a run's config that this size sets."""
        sections: dict[str, Any] = {
            "model": self.model.model_dump(mode="json", exclude_unset=True),
            "tokenizer": {"quantizer": {"codes_per_level": list(CODES_PER_LEVEL)}},
        }
        return (
            sections if self.learning_rate is None else {**sections, "training": {"learning_rate": self.learning_rate}}
        )


@dataclass(frozen=True)
class ParameterCount:
    """Trainable numbers: all that a model multiplies with, those a token meets, and rows of the context's tables."""

    total: int
    active: int
    tables: int


def count_parameters(config: OneRecConfig) -> ParameterCount:
    """Count without allocating anything.

    The tables of item and code vectors that the context looks up stand apart: the papers do not count embeddings of
    sparse features. The decoder's code vectors and its heads are counted.
    """
    with torch.device("meta"):
        model = OneRec(config)
    tables = sum(parameter.numel() for parameter in model.encoder.embedding.parameters())
    experts = sum(
        parameter.numel()
        for module in model.modules()
        if isinstance(module, Experts)
        for parameter in module.parameters()
    )
    total = model.num_parameters() - tables
    idle = experts * (config.num_experts - config.experts_per_token) // max(config.num_experts, 1)
    return ParameterCount(total, total - idle, tables)


def _report(parameters: float, num_layers: int, d_model: int, num_heads: int, **experts: Any) -> Preset:
    """A model of the technical report's table 1; its layers are half encoder, half decoder."""
    model = ModelSettings(
        d_model=d_model,
        num_heads=num_heads,
        d_ff=2 * d_model,
        num_context_layers=num_layers // 2,
        num_decoder_layers=num_layers // 2,
        context="bidirectional",
        max_history_items=404,  # 405 positions with the start, section 2.2
        **experts,
        **_PLAIN,
    )
    return Preset(model, parameters, "arXiv 2506.13695, table 1")


def _lazy(
    parameters: float,
    d_model: int,
    num_layers: int,
    num_heads: int,
    embedding_dim: int,
    learning_rate: float,
    **experts: Any,
) -> Preset:
    """A model of OneRec-V2's table 5."""
    model = ModelSettings(
        d_model=d_model,
        num_heads=num_heads,
        d_ff=4 * d_model,
        num_decoder_layers=num_layers,
        context="lazy",
        embedding_dim=embedding_dim,
        activation="swiglu",
        max_history_items=511,  # 512 positions with the start, section 2.3
        **experts,
        **_PLAIN,
    )
    return Preset(model, parameters, "arXiv 2508.20900, table 5", learning_rate)


_REPORT_EXPERTS = {"num_experts": 24, "expert_d_ff": 2688}
_V2_EXPERTS = {
    "num_experts": 53,
    "experts_per_token": 3,
    "num_shared_experts": 1,
    "expert_d_ff": 1408,
    "num_dense_blocks": 2,
    "normalise_gates": True,
}

PRESETS: dict[str, Preset] = {
    "onerec-0.015b": _report(0.015e9, 4, 128, 4),
    "onerec-0.121b": _report(0.121e9, 8, 1024, 8),
    "onerec-0.935b": _report(0.935e9, 8, 1024, 8, **_REPORT_EXPERTS, experts_per_token=2),
    "onerec-2.633b": _report(
        2.633e9, 24, 1024, 8, **_REPORT_EXPERTS, experts_per_token=4, experts_in_context=True, num_dense_blocks=6
    ),
    "onerec-v2-0.1b": _lazy(0.1e9, 640, 12, 10, 32, 5e-4),
    "onerec-v2-0.2b": _lazy(0.2e9, 896, 12, 14, 45, 3.54e-4),
    "onerec-v2-0.5b": _lazy(0.5e9, 1408, 14, 11, 70, 2.24e-4),
    "onerec-v2-1b": _lazy(1e9, 1792, 18, 14, 90, 1.58e-4),
    "onerec-v2-2b": _lazy(2e9, 2304, 22, 18, 115, 1.12e-4),
    "onerec-v2-4b": _lazy(4e9, 2944, 26, 23, 147, 7.91e-5),
    "onerec-v2-8b": _lazy(8e9, 3584, 34, 28, 179, 5.59e-5),
    "onerec-v2-moe-4b": _lazy(4e9, 1408, 14, 11, 70, 2.24e-4, **_V2_EXPERTS),
}
