"""OneRec's configuration, in the form transformers saves beside the weights."""

from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

PAD_TOKEN, BOS_TOKEN = 0, 1
NUM_SPECIAL_TOKENS = 2

ContextKind = Literal["causal", "bidirectional", "lazy"]
Positions = Literal["from_start", "from_end"]
Activation = Literal["relu", "gelu", "swiglu"]
RouterScore = Literal["sigmoid", "softmax"]


class OneRecConfig(PreTrainedConfig):
    """Shape of a OneRec model.

    Args:
        codes_per_level: codes K of each semantic-ID level, the collision suffix included.
        num_items: items in the catalogue the ID table covers.
        num_pieces: pieces of semantic IDs that have vectors in the context; 0 for none.
        d_model, num_heads, head_dim, d_ff: width, attention heads, width of a head, inner width of the feed-forward.
        num_context_layers, num_decoder_layers: blocks of the context encoder and of the decoder.
        context: "causal" (each history position sees the ones before it, so all are targets in one pass),
            "bidirectional" (the report's encoder; one target a row), or "lazy" (OneRec-V2: no context encoder, hence
            `num_context_layers` 0; all positions are targets in one pass).
        embedding_dim: width of the item vectors that a lazy context reads; None for d_model.
        num_kv_heads: heads G_kv of a lazy context's keys and values, each read by num_heads / num_kv_heads query
            heads; None for num_heads.
        num_kv_layers: sets L_kv of a lazy context's keys and values; decoder layer l reads set
            floor(l * L_kv / num_decoder_layers).
        separate_values: values of their own in a lazy context (S_kv = 2) instead of the keys again (S_kv = 1).
        activation: of the dense feed-forward; "swiglu" gates with a third matrix.
        num_experts: routed SwiGLU experts in place of the decoder's feed-forward; 0 for a dense one.
        experts_per_token, num_shared_experts: routed experts that a token goes through, and experts all go through.
        expert_d_ff: inner width of an expert; None for d_ff.
        num_dense_blocks: first blocks of a stack that keep the dense feed-forward.
        experts_in_context: experts in the context encoder's blocks too.
        router_score: how a router's logits become scores, over each expert alone or over all.
        normalise_gates: divide the scores of a token's experts by their sum.
        balancing_rate: step of the biases that even out the experts' loads; 0 leaves them as they are.
        max_history_items: newest items of a history that are read.
        positions: which item has position 0: the oldest that is read, or the newest.
        item_embedding: add an own vector for each item index to the sum of its code vectors in the context.
        item_head_weight: weight in the loss of an auxiliary full softmax over item vectors on the context's states;
            0 builds no such head.
        item_distillation: share of each code's target taken from the item head's distribution instead of the true code.
        bos_reads_context: BOS carries the context state before the target, of the newest item that the decoder sees.
        prefix_vectors: add to a code's logit the product of a query with the mean vector of the items below that code.
        repeat_bias: learn a term of each logit for items that the history holds already.
        path_sampling: share of targets whose codes are those of an item drawn from the item head's distribution.
        prefix_loss_weight, prefix_loss_sharpness: weight in the loss of the prefix-aware term, and how much its worst
            prefix counts.
        label_smoothing: probability mass of a code's target spread over its level.
        dropout: share of activations dropped in training, in the context encoder `context_dropout`, None for the same;
            `item_dropout` of whole history items.
        pathways: the fitted specification of further pathways into the context, as `PathwaySpec` writes it; None for
            the short-term items alone.
        table_hash: content hash of the ID table whose codes the model holds.
    """

    model_type = "onerec"
    is_encoder_decoder = True

    def __init__(
        self,
        codes_per_level: list[int] | tuple[int, ...] = (256, 256, 256),
        num_items: int = 1,
        num_pieces: int = 0,
        d_model: int = 128,
        num_heads: int = 4,
        head_dim: int | None = None,
        d_ff: int = 512,
        num_context_layers: int = 2,
        num_decoder_layers: int = 2,
        context: ContextKind = "causal",
        embedding_dim: int | None = None,
        num_kv_heads: int | None = None,
        num_kv_layers: int = 1,
        separate_values: bool = False,
        activation: Activation = "gelu",
        num_experts: int = 0,
        experts_per_token: int = 2,
        num_shared_experts: int = 0,
        expert_d_ff: int | None = None,
        num_dense_blocks: int = 0,
        experts_in_context: bool = False,
        router_score: RouterScore = "sigmoid",
        normalise_gates: bool = False,
        balancing_rate: float = 1e-3,
        max_history_items: int = 50,
        positions: Positions = "from_start",
        item_embedding: bool = True,
        bos_reads_context: bool = False,
        prefix_vectors: bool = False,
        repeat_bias: bool = False,
        item_head_weight: float = 0.0,
        item_distillation: float = 0.0,
        path_sampling: float = 0.0,
        prefix_loss_weight: float = 0.0,
        prefix_loss_sharpness: float = 1.0,
        label_smoothing: float = 0.0,
        dropout: float = 0.1,
        context_dropout: float | None = None,
        item_dropout: float = 0.0,
        pathways: dict[str, Any] | None = None,
        table_hash: str = "",
        **kwargs: Any,
    ) -> None:
        self.codes_per_level = list(codes_per_level)
        self.num_items = num_items
        self.num_pieces = num_pieces
        self.d_model = self.hidden_size = d_model
        self.num_heads = self.num_attention_heads = num_heads
        self.head_dim = head_dim if head_dim is not None else d_model // num_heads
        self.d_ff = d_ff
        self.num_context_layers = 0 if context == "lazy" else num_context_layers
        self.num_decoder_layers = self.num_hidden_layers = num_decoder_layers
        self.context = context
        self.embedding_dim = embedding_dim if embedding_dim is not None else d_model
        self.num_kv_heads = num_kv_heads if num_kv_heads is not None else num_heads
        self.num_kv_layers = num_kv_layers
        self.separate_values = separate_values
        self.activation = activation
        self.num_experts = num_experts
        self.experts_per_token = experts_per_token
        self.num_shared_experts = num_shared_experts
        self.expert_d_ff = expert_d_ff if expert_d_ff is not None else d_ff
        self.num_dense_blocks = num_dense_blocks
        self.experts_in_context = experts_in_context
        self.router_score = router_score
        self.normalise_gates = normalise_gates
        self.balancing_rate = balancing_rate
        self.max_history_items = max_history_items
        self.positions = positions
        self.item_embedding = item_embedding
        self.bos_reads_context = bos_reads_context
        self.prefix_vectors = prefix_vectors
        self.repeat_bias = repeat_bias
        self.item_head_weight = item_head_weight
        self.item_distillation = item_distillation
        self.path_sampling = path_sampling
        self.prefix_loss_weight = prefix_loss_weight
        self.prefix_loss_sharpness = prefix_loss_sharpness
        self.label_smoothing = label_smoothing
        self.dropout = dropout
        self.context_dropout = context_dropout if context_dropout is not None else dropout
        self.item_dropout = item_dropout
        self.pathways = pathways
        self.table_hash = table_hash
        self.vocab_size = NUM_SPECIAL_TOKENS + sum(self.codes_per_level)
        special = {"pad_token_id": PAD_TOKEN, "bos_token_id": BOS_TOKEN, "decoder_start_token_id": BOS_TOKEN}
        kwargs.pop("is_encoder_decoder", None)
        super().__init__(**{**special, "is_encoder_decoder": True, "tie_word_embeddings": False, **kwargs})

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
