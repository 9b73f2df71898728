"""Floating-point operations of a pass, counted from the matrix products, for utilisation figures.

A multiply-add counts as two. Embedding look-ups, norms and softmaxes are left out, as is usual for model FLOPs.
"""

from onerec.model.configuration import OneRecConfig


def forward_flops(config: OneRecConfig, num_positions: int, num_targets: int, mean_context: float) -> float:
    """Operations to encode `num_positions` history items and score the codes of `num_targets` targets.

    `mean_context` is the mean number of context positions a target attends to.
    """
    inner = config.num_heads * config.head_dim
    feed_forward = config.d_model * config.d_ff * (3 if config.activation == "swiglu" else 2)
    context_position = config.num_context_layers * (
        4 * config.d_model * inner + feed_forward + 2 * inner * mean_context
    ) + config.num_decoder_layers * (2 * config.d_model * inner)
    decoder_position = config.num_decoder_layers * (
        6 * config.d_model * inner + feed_forward + 2 * inner * (mean_context + (config.num_levels + 1) / 2)
    )
    heads = config.d_model * sum(config.codes_per_level)
    item_head = config.d_model * (config.d_model + config.num_items) if config.item_head_weight else 0
    per_target = config.num_levels * decoder_position + heads + item_head
    return 2.0 * (num_positions * context_position + num_targets * per_target)


def training_flops(config: OneRecConfig, num_positions: int, num_targets: int, mean_context: float) -> float:
    """Operations of forward and backward: three times the forward's."""
    return 3.0 * forward_flops(config, num_positions, num_targets, mean_context)
