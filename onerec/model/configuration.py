"""OneRec's configuration, in the form transformers saves beside the weights."""

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

PAD_TOKEN, BOS_TOKEN = 0, 1
NUM_SPECIAL_TOKENS = 2

ContextKind = Literal["causal", "bidirectional", "lazy"]
ContextBlockKind = Literal["transformer", "hstu"]
Positions = Literal["from_start", "from_end"]
Activation = Literal["relu", "gelu", "swiglu"]
RouterScore = Literal["sigmoid", "softmax"]

# Options that are, where they are not given, what another one is.
_FOLLOWING = {
    "embedding_dim": "d_model",
    "num_kv_heads": "num_heads",
    "expert_d_ff": "d_ff",
    "context_dropout": "dropout",
}


class OneRecConfig(PreTrainedConfig):
    """Shape of a OneRec model and weights of its loss; an option that is not given, or None, has its default here."""

    model_type = "onerec"
    attribute_map = {  # noqa: RUF012 -- transformers' own names
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_decoder_layers",
    }

    codes_per_level: list[int]  # codes K of each semantic-ID level, the collision suffix included
    num_items: int  # in the catalogue that the ID table covers
    num_pieces: int = 0  # pieces of semantic IDs that have vectors in the context
    table_hash: str = ""  # content hash of the ID table whose codes the model holds
    session_items: int = 0  # items of a list that is decoded as one sequence; 0: every item on its own

    d_model: int = 128  # width
    num_heads: int = 4  # of attention
    head_dim: int  # width of a head; by default d_model / num_heads
    d_ff: int = 512  # inner width of the feed-forward
    num_context_layers: int = 2  # blocks of the context encoder, none in a lazy context
    num_decoder_layers: int = 2  # blocks of the decoder
    # causal: each history position sees those before it, so all are targets in one pass. bidirectional: the report's
    # encoder, one target a row. lazy: OneRec-V2, no context encoder, all positions are targets in one pass.
    context: ContextKind = "causal"
    context_block: ContextBlockKind = "transformer"  # attention and feed-forward, or HSTU's in place of both
    activation: Activation = "gelu"  # of the dense feed-forward; swiglu gates with a third matrix

    embedding_dim: int  # width of the item vectors that a lazy context reads; by default d_model
    num_kv_heads: int  # G_kv of a lazy context, each read by num_heads / num_kv_heads query heads; default: num_heads
    num_kv_layers: int = 1  # sets L_kv of its keys and values; decoder layer l reads floor(l * L_kv / its layers)
    separate_values: bool = False  # values of their own (S_kv = 2) instead of the keys again (S_kv = 1)

    num_experts: int = 0  # routed SwiGLU experts in place of the decoder's feed-forward; 0: a dense one
    experts_per_token: int = 2  # routed experts that a token goes through
    num_shared_experts: int = 0  # experts that all tokens go through
    expert_d_ff: int  # inner width of an expert; by default d_ff
    num_dense_blocks: int = 0  # first blocks of a stack that keep the dense feed-forward
    experts_in_context: bool = False  # experts in the context encoder's blocks too
    router_score: RouterScore = "sigmoid"  # how a router's logits become scores: over each expert alone or over all
    normalise_gates: bool = False  # divide the scores of a token's experts by their sum
    balancing_rate: float = 1e-3  # step of the biases that even out the experts' loads; 0 leaves them as they are

    max_history_items: int = 50  # newest items of a history that are read
    positions: Positions = "from_start"  # which item has position 0: the oldest that is read, or the newest
    item_embedding: bool = True  # an own vector for each item beside the sum of its code vectors, in the context
    pathways: dict[str, Any] | None = None  # further ones into the context, as `PathwaySpec` writes it
    bos_reads_context: bool = False  # BOS carries the context state before the target
    prefix_vectors: bool = False  # codes' logits gain a product of a query with the mean vector of the items below
    repeat_bias: bool = False  # codes' logits gain a term for items that the history holds already

    item_head_weight: float = (
        0.0  # in the loss, of a softmax over item vectors on the context's states; 0: no such head
    )
    id_head_width: int = 0  # of further item heads, over ids alone; 0: none
    num_id_heads: int = 1  # of that width
    id_head_dropout: float = 0.5  # share of its activations dropped in training
    item_distillation: float = 0.0  # share of each code's target taken from the item head's distribution
    path_sampling: float = 0.0  # share of targets whose codes are those of an item that the item head drew
    prefix_loss_weight: float = 0.0  # in the loss, of the prefix-aware term
    prefix_loss_sharpness: float = 1.0  # how much its worst prefix counts
    prefix_rivals: int = 0  # items drawn a target, to outrank by prefixes; 0: the point-wise form
    teacher_weight: float = 0.0  # in the loss, of heads that learn from a teacher; 0: no such heads
    teacher_temperature: float = 1.0  # which softens what both say
    adversarial_weight: float = 0.0  # in the loss, of what moves of the history's vectors change
    adversarial_size: float = 0.1  # of such a move, as share of the vectors' own norm
    adversarial_by_fit: bool = False  # move a history the more, the better it is fitted
    label_smoothing: float = 0.0  # probability of a code's target spread over its level

    dropout: float = 0.1  # share of activations dropped in training
    context_dropout: float  # the same in the context encoder; by default dropout
    final_dropout: float | None = None  # of a stack's last block, where those before it go there in even steps
    layer_dropout: float = 0.0  # share of rows that pass a stack's last block by, in even steps from the first one
    item_dropout: float = 0.0  # share of history items dropped in training

    is_encoder_decoder: bool = True
    pad_token_id: int = PAD_TOKEN
    bos_token_id: int = BOS_TOKEN
    decoder_start_token_id: int = BOS_TOKEN
    tie_word_embeddings: bool = False

    def __init__(self, codes_per_level: Sequence[int] = (256, 256, 256), num_items: int = 1, **options: Any) -> None:
        own = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        chosen = own | {name: value for name, value in options.items() if value is not None}
        following = {name: chosen[followed] for name, followed in _FOLLOWING.items()}
        following["head_dim"] = chosen["d_model"] // chosen["num_heads"]
        super().__init__(**(following | chosen))
        self.codes_per_level, self.num_items = list(codes_per_level), num_items
        self.num_context_layers = 0 if self.context == "lazy" else self.num_context_layers
        self.vocab_size = NUM_SPECIAL_TOKENS + sum(self.codes_per_level)

    @property
    def many_targets(self) -> bool:
        """Whether every position of a history can be a target of one pass: no position knows of a later one."""
        return self.context != "bidirectional"

    @property
    def num_levels(self) -> int:
        """Codes in one semantic ID."""
        return len(self.codes_per_level)

    @property
    def level_offsets(self) -> list[int]:
        """First flat token id of each level: padding and BOS come before all codes."""
        return [NUM_SPECIAL_TOKENS + sum(self.codes_per_level[:level]) for level in range(self.num_levels)]


AutoConfig.register(OneRecConfig.model_type, OneRecConfig)
