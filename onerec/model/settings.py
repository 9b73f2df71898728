"""The model section of a run's config."""

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from onerec.data.pathway_settings import PathwaySettings, PathwaySpec
from onerec.errors import ConfigError
from onerec.model.configuration import (
    Activation,
    ContextBlockKind,
    ContextKind,
    OneRecConfig,
    Positions,
    RouterScore,
)
from tokenizer.settings import Settings


class ModelSettings(Settings):
    """Shape and regularisation of the encoder-decoder; codes and items come from the ID table."""

    d_model: PositiveInt = Field(128, description="width (TIGER and the report's smallest model: 128)")
    num_heads: PositiveInt = Field(4, description="attention heads (the report's 0.015B model: 4)")
    head_dim: PositiveInt | None = Field(None, description="width of a head; None for d_model / num_heads")
    d_ff: PositiveInt = Field(512, description="inner width of the feed-forward")
    num_context_layers: PositiveInt = Field(2, description="blocks of the context encoder; a lazy context has none")
    num_decoder_layers: PositiveInt = Field(2, description="blocks of the decoder")
    context: ContextKind = Field(
        "causal",
        description="causal: every position a target; bidirectional: the report's; lazy: OneRec-V2's, without encoder",
    )
    context_block: ContextBlockKind = Field(
        "transformer",
        description="of the context encoder; hstu: SiLU attention with relative biases in place of softmax and "
        "feed-forward, which reads times by pathways.times",
    )
    embedding_dim: PositiveInt | None = Field(
        None, description="lazy: width of the item vectors (V2, table 5: d_model / 20); None for d_model"
    )
    num_kv_heads: PositiveInt | None = Field(
        None, description="lazy: heads of keys and values, G_kv; None for num_heads (V2's default)"
    )
    num_kv_layers: PositiveInt = Field(1, description="lazy: sets of keys and values, L_kv (V2: 1, for all layers)")
    separate_values: bool = Field(False, description="lazy: values apart from keys, S_kv = 2 (V2: keys are the values)")
    activation: Activation = Field("gelu", description="of the dense feed-forward; experts are always SwiGLU")
    num_experts: int = Field(0, ge=0, description="routed experts in place of the decoder's feed-forward; 0: dense")
    experts_per_token: PositiveInt = Field(2, description="routed experts of a token (the report's 0.935B model: 2)")
    num_shared_experts: int = Field(0, ge=0, description="further experts that every token goes through (V2: 1)")
    expert_d_ff: PositiveInt | None = Field(None, description="inner width of an expert; None for d_ff")
    num_dense_blocks: int = Field(0, ge=0, description="first blocks of a stack without experts (V2: 2)")
    experts_in_context: bool = Field(False, description="experts in the context encoder too (the report's 2.6B model)")
    router_score: RouterScore = Field("sigmoid", description="of a router's logits (arXiv 2408.15664: sigmoid)")
    normalise_gates: bool = Field(False, description="scores of a token's experts sum to 1 (DeepSeek-V3, hence V2)")
    balancing_rate: float = Field(
        1e-3, ge=0, description="step of the biases that even out experts' loads (arXiv 2408.15664: 0.001); 0: none"
    )
    max_history_items: PositiveInt = Field(50, description="newest items of a history that are read")
    positions: Positions = Field("from_start", description="which item has position 0, the oldest read or the newest")
    item_embedding: bool = Field(True, description="an own vector for each item beside its codes, in the context")
    item_start: float = Field(
        0.0, ge=0, description="root mean square at which these vectors start as the tokenizer's; 0: start at random"
    )
    bos_reads_context: bool | None = Field(
        None, description="BOS carries the newest context state before the target; None: unless the context is lazy"
    )
    prefix_vectors: bool = Field(
        True, description="codes' logits gain the product of a query with the mean vector of the items below"
    )
    repeat_bias: bool = Field(True, description="learn a term of the logits for items that the history holds already")
    session_items: int = Field(
        0, ge=0, description="items of a list decoded as one sequence (OneRec v1: 5), by data.sessions; 0: single items"
    )
    item_head_weight: float = Field(1.0, ge=0, description="loss weight of the auxiliary softmax over items; 0: none")
    id_head_width: int = Field(
        0, ge=0, description="width of further item heads, each a SASRec over item ids alone (64); 0: none"
    )
    num_id_heads: PositiveInt = Field(1, description="heads of that width, which differ in what they start from")
    id_head_start: float = Field(
        0.0,
        ge=0,
        description="root mean square at which the items of the second one and those after it start as the tokenizer's "
        "vectors; 0: at random, as those of the first",
    )
    id_head_dropout: float = Field(0.5, ge=0, lt=1, description="share of its activations dropped in training")
    item_distillation: float = Field(
        0.0, ge=0, le=1, description="share of each code's target taken from the item heads' distribution"
    )
    path_sampling: float = Field(
        0.0, ge=0, le=1, description="share of targets whose codes are those of an item that the item heads drew"
    )
    prefix_loss_weight: float = Field(
        0.0, ge=0, description="of the loss of prefixes, which beams are pruned by (APAO: 0.05 to 0.4); 0: none"
    )
    prefix_loss_sharpness: float = Field(1.0, ge=0, description="how much the prefix of highest loss counts there")
    prefix_rivals: int = Field(
        0,
        ge=0,
        description="items drawn a target, whose prefixes it is to outrank (APAO pair-wise: 100); 0: point-wise",
    )
    adversarial_weight: float = Field(
        0.0,
        ge=0,
        description="of what the worst small move of a history's vectors changes; 0: none, else 3 steps' time",
    )
    adversarial_size: PositiveFloat = Field(0.1, description="of that move, as share of the vectors' own norm")
    adversarial_by_fit: bool = Field(False, description="move a history the more, the better it is fitted (VAT)")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability spread over a level's other codes")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of activations dropped in training, in 256ths")
    context_dropout: float | None = Field(None, ge=0, lt=1, description="the same in the context; None for dropout")
    final_dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout of a stack's last block, reached in even steps; None: all blocks alike"
    )
    layer_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of rows that pass a stack's last block by, in even steps from the first one"
    )
    item_dropout: float = Field(0.0, ge=0, lt=1, description="share of history items dropped in training")
    pathways: PathwaySettings | None = Field(
        None, description="what the context reads beside the short-term items; None: nothing"
    )

    @model_validator(mode="after")
    def _teacher_exists(self) -> "ModelSettings":
        taught = "item_distillation" if self.item_distillation else "path_sampling" if self.path_sampling else None
        if taught and not self.item_head_weight:
            raise ValueError(f"{taught} needs the item head; set item_head_weight above 0")
        if self.path_sampling and self.context == "lazy":
            raise ValueError("path_sampling needs a context encoder; set it to 0, or the context to causal")
        return self

    @model_validator(mode="after")
    def _id_heads_have_a_place(self) -> "ModelSettings":
        if self.id_head_width and (not self.item_head_weight or self.context == "lazy" or self.session_items):
            raise ValueError(
                f"id_head_width: found {self.id_head_width}, expected 0 without an item head, with a lazy context and "
                "with session_items; set it to 0, or item_head_weight above 0 beside another context of single items"
            )
        if self.num_id_heads > 1 and not self.id_head_width:
            raise ValueError(
                f"num_id_heads: found {self.num_id_heads} beside id_head_width 0, which leaves none; give the width of "
                "each (64), or leave num_id_heads out"
            )
        if self.id_head_start and self.num_id_heads == 1:
            raise ValueError(
                f"id_head_start: found {self.id_head_start} with one id head, whose items start at random; set it to "
                "0, or num_id_heads to 2"
            )
        return self

    @model_validator(mode="after")
    def _start_has_a_table(self) -> "ModelSettings":
        if self.item_start and not self.item_embedding:
            raise ValueError(
                f"item_start: found {self.item_start} with item_embedding false, which leaves nothing to start; "
                "set it to 0, or item_embedding to true"
            )
        return self

    @model_validator(mode="after")
    def _objectives_are_on(self) -> "ModelSettings":
        for key, weight in (("prefix_rivals", "prefix_loss_weight"), ("adversarial_by_fit", "adversarial_weight")):
            if getattr(self, key) and not getattr(self, weight):
                raise ValueError(
                    f"{key}: found {getattr(self, key)} with {weight} 0, which leaves it without effect; "
                    f"set {weight} above 0 or leave {key} out"
                )
        if self.prefix_rivals and self.session_items:
            raise ValueError(
                f"prefix_rivals: found with session_items {self.session_items}, expected single items; "
                "leave it out, which takes the point-wise form"
            )
        return self

    @model_validator(mode="after")
    def _lists_have_one_truth(self) -> "ModelSettings":
        taught = [key for key in ("item_distillation", "path_sampling") if getattr(self, key)]
        if self.session_items and taught:
            raise ValueError(
                f"{', '.join(taught)}: found with session_items {self.session_items}, whose lists are learnt as they "
                "are; set them to 0, or session_items to 0"
            )
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelSettings":
        if self.head_dim is None and self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads: found {self.num_heads}, expected a divisor of d_model {self.d_model}; "
                "change one of them or give head_dim"
            )
        return self

    @model_validator(mode="after")
    def _lazy_is_consistent(self) -> "ModelSettings":
        lazy_only = ("embedding_dim", "num_kv_heads", "num_kv_layers", "separate_values")
        changed = [key for key in lazy_only if getattr(self, key) != type(self).model_fields[key].default]
        if self.context != "lazy" and changed:
            raise ValueError(
                f"{', '.join(changed)}: found with context {self.context}, expected context lazy; "
                "set context=lazy or leave them out"
            )
        if self.context == "lazy" and self.bos_reads_context:
            raise ValueError(
                "bos_reads_context: found with context lazy, whose positions have read nothing; "
                "set it to false, or the context to causal"
            )
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads: found {self.num_kv_heads}, expected a divisor of num_heads {self.num_heads}; "
                "change one of them"
            )
        if self.num_kv_layers > self.num_decoder_layers:
            raise ValueError(
                f"num_kv_layers: found {self.num_kv_layers}, expected at most num_decoder_layers "
                f"{self.num_decoder_layers}; share each set by one layer or more"
            )
        return self

    @model_validator(mode="after")
    def _hstu_is_consistent(self) -> "ModelSettings":
        if self.context_block == "hstu" and self.context == "lazy":
            raise ValueError(
                "context_block: found hstu with context lazy, which has no blocks; "
                "set the context to causal or bidirectional"
            )
        if self.context_block == "hstu" and self.experts_in_context:
            raise ValueError(
                "experts_in_context: found with context_block hstu, whose blocks have no feed-forward; leave it out"
            )
        if self.context_block != "hstu" and self.pathways is not None and self.pathways.times:
            raise ValueError(
                f"pathways.times: found with context_block {self.context_block}, expected hstu, the only one that "
                "reads them; set context_block=hstu or leave them out"
            )
        return self

    @model_validator(mode="after")
    def _returns_are_read(self) -> "ModelSettings":
        if self.pathways is None or self.pathways.returns is None:
            return self
        if self.bos_reads_context is False or self.context == "lazy":
            raise ValueError(
                "pathways.returns: found without bos_reads_context, by which decoding reads them; leave it out, with a "
                "causal or bidirectional context"
            )
        if self.session_items:
            raise ValueError(
                f"pathways.returns: found with session_items {self.session_items}, expected single items, which have "
                "returns of their own; set session_items to 0 or leave returns out"
            )
        return self

    @model_validator(mode="after")
    def _queries_read_the_width(self) -> "ModelSettings":
        lifelong = self.pathways is not None and self.pathways.lifelong is not None
        if lifelong and self.embedding_dim not in (None, self.d_model):
            raise ValueError(
                f"embedding_dim: found {self.embedding_dim} beside pathways.lifelong, whose blocks are d_model "
                f"{self.d_model} wide; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _experts_are_consistent(self) -> "ModelSettings":
        if self.num_experts == 0:
            if self.num_shared_experts or self.num_dense_blocks or self.experts_in_context:
                raise ValueError(
                    "num_experts: found 0 beside num_shared_experts, num_dense_blocks or experts_in_context, "
                    "expected routed experts; set num_experts or leave those out"
                )
            return self
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token: found {self.experts_per_token}, expected at most num_experts {self.num_experts}; "
                "lower it or add experts"
            )
        if self.num_dense_blocks >= self.num_decoder_layers:
            raise ValueError(
                f"num_dense_blocks: found {self.num_dense_blocks}, expected fewer than num_decoder_layers "
                f"{self.num_decoder_layers}; leave a block to the experts or set num_experts=0"
            )
        if self.experts_in_context and self.context == "lazy":
            raise ValueError(
                "experts_in_context: found with context lazy, which has no encoder; expected causal or bidirectional"
            )
        return self

    def configuration(
        self,
        codes_per_level: tuple[int, ...],
        num_items: int,
        num_pieces: int = 0,
        pathways: PathwaySpec | None = None,
    ) -> OneRecConfig:
        """The model's configuration for an ID table of `num_items` rows, whose IDs may be cut into pieces.

        Raises:
            ConfigError: pathways whose features have not been fitted.
        """
        if self.pathways is not None and pathways is None:
            raise ConfigError("model.pathways: found no features fitted on data, expected them. Train by the pipeline.")
        shape = self.model_dump(exclude={"pathways"})
        shape["pathways"] = None if pathways is None else pathways.model_dump(mode="json")
        if self.bos_reads_context is None:
            shape["bos_reads_context"] = self.context != "lazy"
        return OneRecConfig(codes_per_level=codes_per_level, num_items=num_items, num_pieces=num_pieces, **shape)
