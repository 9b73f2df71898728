"""OneRec: item-level context encoder, decoder over semantic-ID codes (arXiv 2506.13695), as a transformers model.

Departures from the report:
1. The context reads the newest `max_history_items` items as vectors of codes plus an own row; the report's pathways
   are options, with departures of their own (`onerec.model.pathways`, `onerec.data.pathways`).
2. With a causal or a lazy context every history position is a target in one pass; the report trains one a sample.
3. By option, BOS carries the newest context state, and codes' logits look up the items below them (`prefixes`) and
   those that the history holds (`repeats`). What decoding reads of the catalogue follows its branching.
4. An auxiliary softmax over all items may train the context beside the codes, and further ones over item ids alone,
   each with an encoder of its own (`id_heads`); all may be teachers of soft targets to the code heads, and have a say
   in the order of what a search has found (`onerec.decoding.rescoring`) and in what else is ranked
   (`onerec.decoding.dense_candidates`). The loss with its further options is in `target_loss`.

Shapes: B batch, S context positions (the start and the history items; in arguments the items alone), P targets a row,
M targets in all, T decoder tokens, L levels, K codes of a level, V flat vocabulary, W beams, D width.
"""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSeq2SeqLM, GenerationMixin, PreTrainedModel

from onerec.errors import ArtifactError
from onerec.model.configuration import NUM_SPECIAL_TOKENS, PAD_TOKEN, OneRecConfig
from onerec.model.context import Context, ContextEncoder, ContextOutput
from onerec.model.decoder import Decoder, DecoderCache
from onerec.model.distillation import CodeTeacher
from onerec.model.features import ZeroLinear
from onerec.model.hashed_embedding import ValueTable
from onerec.model.heads import Catalogue, CodeHeads, ItemHead
from onerec.model.id_heads import IdHeads
from onerec.model.initialisation import initialise
from onerec.model.layers import visible_up_to
from onerec.model.lists import ListDecoder, ListPass
from onerec.model.moe import balance_experts
from onerec.model.precision import Precision
from onerec.model.prefixes import PrefixTree, PrefixVectors
from onerec.model.quantised import lower_precision, require_hardware
from onerec.model.repeats import SeenItems, first_occurrences
from onerec.model.target_loss import OneRecOutput, TargetPass, Teach, states_before_targets, target_loss
from onerec.model.teacher_heads import TeacherHeads


class OneRec(PreTrainedModel, GenerationMixin):
    """The generative recommender; `encode` and `decode_step` are what beam search calls."""

    config_class = OneRecConfig
    config: OneRecConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__(config)
        self.encoder = ContextEncoder(config)
        self.decoder = ListDecoder(config) if config.session_items else Decoder(config)
        self.code_heads = CodeHeads(config)
        self.item_head = ItemHead(config) if config.item_head_weight else None
        self.id_heads = IdHeads(config)
        self.teacher_heads = TeacherHeads(config) if config.teacher_weight else None
        self._teacher: CodeTeacher | None = None
        self._tree: PrefixTree | None = None
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        if isinstance(module, ValueTable | ZeroLinear):
            module.start()
        else:
            initialise(module)

    def set_codes(self, codes_NL: np.ndarray, table_hash: str) -> None:
        """Store the ID table (N, L) whose content hash is `table_hash`.

        Raises:
            ArtifactError: the table has another number of items or levels, or a code outside its level.
        """
        expected = (self.config.num_items, self.config.num_levels)
        if codes_NL.shape != expected:
            raise ArtifactError(
                f"ID table: found shape {codes_NL.shape}, expected {expected}. Use the model's own table."
            )
        limits_L = np.asarray(self.config.codes_per_level)
        if (codes_NL < 0).any() or (codes_NL >= limits_L).any():
            raise ArtifactError(f"ID table: found a code outside its level, expected codes below {limits_L.tolist()}.")
        first_rows_L = np.concatenate([[0], np.cumsum(limits_L)[:-1]])
        self.encoder.code_rows_NL.copy_(torch.from_numpy(codes_NL.astype(np.int64) + first_rows_L))
        self.config.table_hash = table_hash
        self._teacher = self._tree = None

    def set_pieces(self, pieces_P: np.ndarray, offsets: np.ndarray) -> None:
        """Store the pieces of each item's semantic ID: those of item k are `pieces_P[offsets[k]:offsets[k + 1]]`.

        Raises:
            ArtifactError: pieces of another catalogue, or beyond the model's number of them.
        """
        lengths_N = np.diff(offsets)
        if len(lengths_N) != self.config.num_items or pieces_P.max(initial=-1) >= self.config.num_pieces:
            raise ArtifactError(
                f"pieces: found {len(lengths_N)} items and pieces up to {pieces_P.max(initial=-1)}, expected "
                f"{self.config.num_items} items and pieces below {self.config.num_pieces}. Use the pieces of the "
                "model's own tokenizer."
            )
        rows_NL = self.encoder.embedding.piece_rows_NL
        padded_NL = np.full(rows_NL.shape, self.config.num_pieces, dtype=np.int64)
        padded_NL[np.arange(self.config.num_levels) < lengths_N[:, None]] = pieces_P
        rows_NL.copy_(torch.from_numpy(padded_NL))

    # ---- decoding ------------------------------------------------------------------------------------------------

    def for_decoding(self, precision: Precision) -> "OneRec":
        """This model, or one made of it whose blocks multiply less precisely; last norms and heads stay in float32.

        Whatever lies outside of the blocks, tables above all, both share.

        Raises:
            ConfigError: the model's device has no such precision.
        """
        if precision == "float32":
            return self
        require_hardware(precision, self.device)
        own = {id(tensor) for stack in self.stacks() for tensor in _tensors(stack)}
        model = copy.deepcopy(self, {id(tensor): tensor for tensor in _tensors(self) if id(tensor) not in own})
        for stack in model.stacks():
            lower_precision(stack, precision)
        return model

    def stacks(self) -> list[torch.nn.Module]:
        """The blocks of context and decoder, and a lazy context's keys and values: most of what is multiplied."""
        stacks = [self.encoder.blocks, self.decoder.blocks, self.decoder.context_processor]
        return [stack for stack in stacks if stack is not None]

    def item_vectors(self) -> Tensor:
        """The vector (N, E) of every item in the catalogue, as the context reads it."""
        return self.encoder.item_vectors()

    def pool_prefix_vectors(self, vectors_NE: Tensor | None = None) -> PrefixVectors | None:
        """The mean vectors of the items below each prefix of the ID table; None for a model without heads for them.

        `vectors_NE` are the items' vectors, looked up where they are not given.
        """
        if not self.config.prefix_vectors:
            return None
        return self._prefix_tree().pool(self.item_vectors() if vectors_NE is None else vectors_NE)

    def encode(
        self,
        items_BS: Tensor,
        lengths_B: Tensor,
        prefix_vectors: PrefixVectors | None = None,
        pathways: dict[str, Tensor] | None = None,
    ) -> Context:
        """Encode right-padded histories of item indices; what stands in the padding does not matter.

        `prefix_vectors` are those of `pool_prefix_vectors`, pooled anew where they are not given; `pathways` what the
        encoder's pathways read, for a model that has any.
        """
        states_BSD = self.encoder.encode(items_BS, lengths_B, pathways=pathways)
        mask_BS = visible_up_to(lengths_B, items_BS.size(1))[:, 0, 0]
        real_BS = self.encoder.real_positions(mask_BS, pathways)
        visible = None if bool(real_BS.all()) else real_BS[:, None, None]
        keys, values = self.decoder.project_context(states_BSD)
        newest_BD = self.states_before(states_BSD, real_BS, 1, pathways)[:, 0]
        if prefix_vectors is None:
            prefix_vectors = self.pool_prefix_vectors()
        catalogue = self._catalogue(items_BS, mask_BS, prefix_vectors)
        id_states = tuple(head.newest_state(items_BS, lengths_B) for head in self.id_heads)
        return Context(states_BSD, newest_BD, keys, values, visible, catalogue, id_states)

    def states_before(
        self, states_BSD: Tensor, mask_BS: Tensor, num_targets: int, pathways: dict[str, Tensor] | None
    ) -> Tensor:
        """The context state (B, P, D) before each target, with what its return is to be, where the model reads that."""
        states_BPD = states_before_targets(states_BSD, mask_BS, num_targets)
        reader = self.encoder.pathways
        return states_BPD if reader is None else reader.add_returns(states_BPD, mask_BS, pathways)

    def new_cache(self) -> DecoderCache:
        """An empty cache for one beam search."""
        return DecoderCache(self.config.num_decoder_layers)

    def decode_step(self, codes_BW: Tensor | None, level: int, context: Context, cache: DecoderCache) -> Tensor:
        """Log-probabilities (B, W, K) of `level` after the codes chosen at the level before (None and W = 1 at 0)."""
        states_BWD = self.read_codes(codes_BW, level, context, cache)
        return self.code_heads(states_BWD, level, cache.prefixes_BW, context.catalogue).log_softmax(dim=-1)

    def read_codes(self, codes_BW: Tensor | None, level: int, context: Context, cache: DecoderCache) -> Tensor:
        """The states (B, W, D) from which `decode_step` makes its answer, whose prefixes the cache then holds."""
        states_BWD = self.decoder.step(codes_BW, level, context, cache)
        if codes_BW is None:
            cache.prefixes_BW = torch.zeros(states_BWD.shape[:2], dtype=torch.long, device=states_BWD.device)
        else:
            cache.prefixes_BW = cache.prefixes_BW * self.config.codes_per_level[level - 1] + codes_BW
        return states_BWD

    def codes_of(self, items: Tensor) -> Tensor:
        """Item indices (...) -> their codes (..., L) by the ID table in the model."""
        first_rows_L = torch.tensor(self.decoder.first_rows, device=items.device)
        return self.encoder.code_rows_NL[items] - first_rows_L

    def score_levels(self, context: Context, codes_BPL: Tensor) -> list[Tensor]:
        """Logits of each level after the codes before it, all P code tuples of a request at once.

        Returns:
            (B, 1, K) of the first level, which all tuples share, then (B, P, K).
        """
        rows_BPL = codes_BPL + torch.tensor(self.decoder.first_rows, device=codes_BPL.device)
        hidden_BPLD = self.decoder(
            rows_BPL[..., :-1], context.newest_BD[:, None], context.keys, context.values, context.visible_B11S
        )
        prefixes = self.prefixes_of(codes_BPL[..., :-1])
        first = self.code_heads(hidden_BPLD[:, :1, 0], 0, prefixes[0][:, :1], context.catalogue)
        later = [
            self.code_heads(hidden_BPLD[:, :, level], level, prefixes[level], context.catalogue)
            for level in range(1, codes_BPL.size(2))
        ]
        return [first, *later]

    def prefixes_of(self, codes: Tensor) -> tuple[Tensor, ...]:
        """Codes (..., T) -> the prefixes (...) of 0 to T codes as numbers."""
        prefixes = [torch.zeros(codes.shape[:-1], dtype=torch.long, device=codes.device)]
        for level in range(codes.size(-1)):
            prefixes.append(prefixes[-1] * self.config.codes_per_level[level] + codes[..., level])
        return tuple(prefixes)

    def seen_items(self, items: Tensor, counted: Tensor) -> SeenItems | None:
        """Items (..., S) of histories where `counted` (bool), for each history (..., 1, S); None where no head asks."""
        if not self.config.repeat_bias:
            return None
        codes_1SL = self.codes_of(items)[..., None, :, :]
        shares_SL = self._shares_of(items) * counted[..., None]
        seen_1S = items.masked_fill(~counted, -1)[..., None, :]
        return SeenItems(seen_1S, self.prefixes_of(codes_1SL[..., :-1]), codes_1SL, shares_SL[..., None, :, :])

    def _shares_of(self, items: Tensor) -> Tensor:
        """What part of the items below each of its prefixes an item is, (...) -> (..., L)."""
        return self._prefix_tree().share_of_item_NL[items]

    def _catalogue(self, items_BS: Tensor, real_BS: Tensor, prefix_vectors: PrefixVectors | None) -> Catalogue:
        """What the code heads look up for requests; only where one asks are histories searched for repetition."""
        counted_BS = real_BS & first_occurrences(items_BS) if self.config.repeat_bias else real_BS
        return Catalogue(prefix_vectors, self.seen_items(items_BS, counted_BS))

    # ---- training and transformers' interface --------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        target_items: Tensor | None = None,
        encoder_outputs: ContextOutput | None = None,
        counted: Tensor | None = None,
        pathways: dict[str, Tensor] | None = None,
        target_weights: Tensor | None = None,
        teach: Teach | None = None,
        **_: Any,
    ) -> OneRecOutput:
        """Loss over target items, or logits over the flat vocabulary in the form of transformers' generate.

        Args:
            input_ids: (B, S) item index + 1, 0 for padding on the right.
            target_items: (B, P) the items after the last P of the 1 + S positions, for a causal or lazy context, or
                (B, 1) the item after the whole history; -100 where there is none. (B, 1, m) the list after it, for a
                model of lists.
            decoder_input_ids: (B, T) flat tokens [BOS, code, ...] with T <= L; used when no targets are given.
            labels: (B, T) flat tokens to predict, -100 to leave out.
            counted: bool, one or (B, 1): whether the rows count as load of experts; None for yes.
            pathways: what the encoder's pathways read, for a model that has any.
            target_weights: (B, P) how much each target counts; None for all the same.
            teach: a teacher's reading of the same batch, for a model with heads that learn from it.
        """
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError("OneRec.forward needs input_ids or encoder_outputs")
            encoder_outputs = self.encoder(input_ids, attention_mask, counted, pathways)
        if target_items is not None:
            batch = self.target_pass(encoder_outputs, target_items, attention_mask, counted, pathways, target_weights)
            return target_loss(batch, teach)
        if decoder_input_ids is None:
            raise ValueError("OneRec.forward needs target_items or decoder_input_ids")
        states_BSD, items_BS, mask_BS = self._positions(encoder_outputs, attention_mask, pathways)
        logits_BTV = self._flat_logits(states_BSD, items_BS, mask_BS, decoder_input_ids, pathways)
        loss = None if labels is None else F.cross_entropy(logits_BTV.flatten(0, 1), labels.flatten())
        return OneRecOutput(loss=loss, logits=logits_BTV, encoder_last_hidden_state=states_BSD)

    def target_pass(
        self,
        encoded: ContextOutput,
        target_items: Tensor,
        attention_mask: Tensor | None = None,
        counted: Tensor | None = None,
        pathways: dict[str, Tensor] | None = None,
        target_weights: Tensor | None = None,
    ) -> TargetPass:
        """A batch that the encoder has read, with its targets; the arguments are those of `forward`."""
        positions = self._positions(encoded, attention_mask, pathways)
        if target_items.dim() == 3:
            return ListPass(self, *positions, target_items[:, 0], counted, pathways)
        return TargetPass(self, *positions, target_items, counted, pathways, target_weights)

    def _positions(
        self, encoded: ContextOutput, attention_mask: Tensor | None, pathways: dict[str, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States of all positions of the context, items of the last of them, and which positions are real."""
        states_BSD, history_BS = encoded.last_hidden_state, encoded.input_ids
        assert states_BSD is not None
        assert history_BS is not None
        mask_BS = attention_mask.bool() if attention_mask is not None else history_BS.ne(PAD_TOKEN)
        return states_BSD, (history_BS - 1).clamp(min=0), self.encoder.real_positions(mask_BS, pathways)

    def balance_experts(self) -> Tensor | None:
        """Even out the experts' loads; to be called after each optimizer step, by all processes together.

        Returns:
            The loads (routers, experts) since the last call, for `moe.load_statistics`; None without experts.
        """
        return balance_experts(self, self.config.balancing_rate)

    def get_encoder(self, *_: Any, **__: Any) -> ContextEncoder:
        return self.encoder

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        decoder_input_ids: Tensor,
        encoder_outputs: ContextOutput | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Inputs of one generate step; the few tokens of an ID are read again instead of cached."""
        return {
            "decoder_input_ids": decoder_input_ids,
            "encoder_outputs": encoder_outputs,
            "attention_mask": attention_mask,
        }

    def code_teacher(self) -> CodeTeacher:
        """What sums item probabilities along the ID table's tree."""
        if self._teacher is None:
            self._teacher = CodeTeacher(self._all_codes(), self.config.codes_per_level, self.device)
        return self._teacher

    def _prefix_tree(self) -> PrefixTree:
        if self._tree is None or self._tree.num_items != self.config.num_items:  # a copy may have taken in new items
            with torch.inference_mode(False):  # whoever asks first, training reads it too
                self._tree = PrefixTree(self._all_codes(), self.config.codes_per_level, self.device)
        return self._tree

    def _all_codes(self) -> np.ndarray:
        return self.codes_of(torch.arange(self.config.num_items, device=self.device)).cpu().numpy()

    def _flat_logits(
        self,
        states_BSD: Tensor,
        items_BS: Tensor,
        mask_BS: Tensor,
        decoder_input_ids: Tensor,
        pathways: dict[str, Tensor] | None,
    ) -> Tensor:
        """Logits (B, T, V): those of position t fill the codes of level t, the rest is -inf."""
        keys, values = self.decoder.project_context(states_BSD)
        code_rows_BT = decoder_input_ids[:, 1:] - NUM_SPECIAL_TOKENS
        first_rows_T = torch.tensor(self.decoder.first_rows[: code_rows_BT.size(1)], device=code_rows_BT.device)
        prefixes = self.prefixes_of((code_rows_BT - first_rows_T)[:, None])
        catalogue = self._catalogue(items_BS, mask_BS[:, -items_BS.size(1) :], self.pool_prefix_vectors())
        newest_B1D = self.states_before(states_BSD, mask_BS, 1, pathways)
        hidden_BTD = self.decoder(code_rows_BT[:, None], newest_B1D, keys, values, mask_BS[:, None, None, :])[:, 0]
        logits_BTV = hidden_BTD.new_full((*hidden_BTD.shape[:2], self.config.vocab_size), float("-inf"))
        for level in range(hidden_BTD.size(1)):
            first = self.config.level_offsets[level]
            logits_B1K = self.code_heads(hidden_BTD[:, level, None], level, prefixes[level], catalogue)
            logits_BTV[:, level, first : first + self.config.codes_per_level[level]] = logits_B1K[:, 0]
        return logits_BTV


def _tensors(module: torch.nn.Module) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())


AutoModel.register(OneRecConfig, OneRec)
AutoModelForSeq2SeqLM.register(OneRecConfig, OneRec)
