"""Floating-point operations of a pass, counted from the matrix products, for utilisation figures.

A multiply-add counts as two. Embedding look-ups, norms and softmaxes are left out, as is usual for model FLOPs. Every
first code is taken to have items.
"""

from collections.abc import Sequence

from onerec.model.configuration import OneRecConfig
from onerec.model.sasrec import SasRecShape


def forward_flops(config: OneRecConfig, num_positions: int, num_targets: int, mean_context: float) -> float:
    """Operations to encode `num_positions` history items and score the codes of `num_targets` targets.

    `mean_context` is the mean number of context positions a target attends to.
    """
    attended = mean_context + (_list_tokens(config) + 1) / 2
    heads = sum(_code_head(config, level) for level in range(config.num_levels))
    item_head = config.embedding_dim * (config.d_model + config.num_items) if config.item_head_weight else 0
    id_head = config.id_head_width * config.num_items
    per_list = _list_tokens(config) * _decoder_position(config, attended) + _bos(config)
    per_target = per_list / max(config.session_items, 1) + heads + item_head + config.num_id_heads * id_head
    per_position = _context_position(config, mean_context) + _id_position(config, mean_context)
    return 2.0 * (num_positions * per_position + num_targets * per_target)


def training_flops(config: OneRecConfig, num_positions: int, num_targets: int, mean_context: float) -> float:
    """Operations of forward and backward: three times the forward's."""
    return 3.0 * forward_flops(config, num_positions, num_targets, mean_context)


def decoding_flops(config: OneRecConfig, num_positions: int, beams_per_level: Sequence[int]) -> float:
    """Operations of one request's beam search over a context of `num_positions`, its encoding included.

    `beams_per_level` is how many beams read each level: one, the root, at the first.
    """
    per_position = _context_position(config, num_positions) + _id_position(config, num_positions)
    products = num_positions * per_position + _bos(config)
    for level, num_beams in enumerate(beams_per_level):
        attended = num_positions + level + 1
        products += num_beams * (_decoder_position(config, attended) + _code_head(config, level))
    return 2.0 * products


def _context_position(config: OneRecConfig, mean_context: float) -> float:
    """Multiply-adds of one history position, its keys and values for the decoder included."""
    inner = config.num_heads * config.head_dim
    if config.context == "lazy":
        split = 2 if config.separate_values else 1
        return config.embedding_dim * split * config.num_kv_layers * config.num_kv_heads * config.head_dim
    hstu = config.context_block == "hstu"  # which projects a gate too, and has no feed-forward
    attention = config.num_context_layers * ((5 if hstu else 4) * config.d_model * inner + 2 * inner * mean_context)
    feed_forwards = 0 if hstu else _feed_forwards(config, config.num_context_layers, in_context=True)
    return attention + feed_forwards + config.num_decoder_layers * 2 * config.d_model * inner


def _id_position(config: OneRecConfig, mean_context: float) -> float:
    """Multiply-adds of one history position in the id heads' blocks of six square matrices each."""
    block = 6 * config.id_head_width**2 + 2 * config.id_head_width * mean_context
    return config.num_id_heads * SasRecShape.num_blocks * block


def _decoder_position(config: OneRecConfig, num_attended: float) -> float:
    """Multiply-adds of one decoder position that attends to `num_attended` context positions and codes."""
    inner = config.num_heads * config.head_dim
    attention = config.num_decoder_layers * (6 * config.d_model * inner + 2 * inner * num_attended)
    return attention + _feed_forwards(config, config.num_decoder_layers, in_context=False)


def _list_tokens(config: OneRecConfig) -> int:
    """Tokens that are read together: an item's but the last, or those of a list, whose items BOS keeps apart."""
    return max(config.session_items, 1) * (config.num_levels + 1) - 1


def _bos(config: OneRecConfig) -> int:
    """Multiply-adds of the BOS of one target or request."""
    return config.d_model**2 if config.bos_reads_context else 0


def _code_head(config: OneRecConfig, level: int) -> int:
    """Multiply-adds of the logits after one prefix; products with the few children of later prefixes are left out."""
    num_codes = config.codes_per_level[level]
    linear = config.d_model * num_codes
    if not config.prefix_vectors:
        return linear
    return linear + config.embedding_dim * (config.d_model + (num_codes if level == 0 else 0))


def _feed_forwards(config: OneRecConfig, num_blocks: int, in_context: bool) -> int:
    """Multiply-adds of a position in the feed-forwards of a whole stack; of the experts, those that it goes through."""
    dense = config.d_model * config.d_ff * (3 if config.activation == "swiglu" else 2)
    if config.num_experts == 0 or (in_context and not config.experts_in_context):
        return num_blocks * dense
    num_dense = min(config.num_dense_blocks, num_blocks)
    num_used = config.experts_per_token + config.num_shared_experts
    mixture = config.d_model * (config.num_experts + 3 * config.expert_d_ff * num_used)
    return num_dense * dense + (num_blocks - num_dense) * mixture
