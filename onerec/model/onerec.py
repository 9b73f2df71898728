"""OneRec: item-level context encoder, decoder over semantic-ID codes (arXiv 2506.13695), as a transformers model.

Departures from the report:
1. The context reads the newest `max_history_items` items as vectors of codes plus an own row; the report's pathways
   are options, with departures of their own (`onerec.model.pathways`, `onerec.data.pathways`).
2. With a causal or a lazy context every history position is a target in one pass; the report trains one a sample.
3. By option, BOS carries the newest context state, and codes' logits look up the items below them (`prefixes`) and
   those that the history holds (`repeats`). What decoding reads of the catalogue follows its branching.
4. An auxiliary softmax over all items may train the context beside the codes, and be a teacher of soft targets to
   the code heads; it is never part of decoding.

Shapes: B batch, S context positions (the start and the history items; in arguments the items alone), P targets a row,
M targets in all, T decoder tokens, L levels, K codes of a level, V flat vocabulary, W beams, D width.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSeq2SeqLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import Seq2SeqLMOutput

from onerec.data.batches import IGNORED_TARGET
from onerec.errors import ArtifactError
from onerec.model.configuration import NUM_SPECIAL_TOKENS, PAD_TOKEN, OneRecConfig
from onerec.model.context import Context, ContextEncoder, ContextOutput
from onerec.model.decoder import Decoder, DecoderCache
from onerec.model.distillation import CodeTeacher, Lesson
from onerec.model.features import ZeroLinear
from onerec.model.hashed_embedding import ValueTable
from onerec.model.heads import Catalogue, CodeHeads, ItemHead
from onerec.model.initialisation import initialise
from onerec.model.layers import visible_up_to
from onerec.model.moe import balance_experts
from onerec.model.precision import Precision
from onerec.model.prefix_loss import prefix_loss
from onerec.model.prefixes import PrefixTree, PrefixVectors
from onerec.model.repeats import SeenItems, first_occurrences


@dataclass
class OneRecOutput(Seq2SeqLMOutput):
    """Loss and logits, with the summed parts of the loss and the number of targets they stand for."""

    level_losses_L: Tensor | None = None  # mean cross-entropy of each level
    item_loss: Tensor | None = None  # mean cross-entropy of the auxiliary item head
    num_targets: Tensor | None = None


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
        self.decoder = Decoder(config)
        self.code_heads = CodeHeads(config)
        self.item_head = ItemHead(config) if config.item_head_weight else None
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
        """This model, or a copy of it whose blocks multiply in bfloat16; last norms and heads stay in float32."""
        if precision == "float32":
            return self
        model = copy.deepcopy(self)
        model.encoder.blocks.to(torch.bfloat16)
        model.decoder.blocks.to(torch.bfloat16)
        if model.decoder.context_processor is not None:
            model.decoder.context_processor.to(torch.bfloat16)
        return model

    def pool_prefix_vectors(self) -> PrefixVectors | None:
        """The mean vectors of the items below each prefix of the ID table; None for a model without heads for them."""
        return self._pool(self.encoder.item_vectors()) if self.config.prefix_vectors else None

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
        newest_BD = _states_before_targets(states_BSD, real_BS, num_targets=1)[:, 0]
        if prefix_vectors is None:
            prefix_vectors = self.pool_prefix_vectors()
        seen = self._seen_items(items_BS, mask_BS & first_occurrences(items_BS))
        return Context(states_BSD, newest_BD, keys, values, visible, Catalogue(prefix_vectors, seen))

    def new_cache(self) -> DecoderCache:
        """An empty cache for one beam search."""
        return DecoderCache(self.config.num_decoder_layers)

    def decode_step(self, codes_BW: Tensor | None, level: int, context: Context, cache: DecoderCache) -> Tensor:
        """Log-probabilities (B, W, K) of `level` after the codes chosen at the level before (None and W = 1 at 0)."""
        states_BWD = self.decoder.step(codes_BW, level, context, cache)
        if codes_BW is None:
            cache.prefixes_BW = torch.zeros(states_BWD.shape[:2], dtype=torch.long, device=states_BWD.device)
        else:
            cache.prefixes_BW = cache.prefixes_BW * self.config.codes_per_level[level - 1] + codes_BW
        return self.code_heads(states_BWD, level, cache.prefixes_BW, context.catalogue).log_softmax(dim=-1)

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
        prefixes = self._prefixes_of(codes_BPL[..., :-1])
        first = self.code_heads(hidden_BPLD[:, :1, 0], 0, prefixes[0][:, :1], context.catalogue)
        later = [
            self.code_heads(hidden_BPLD[:, :, level], level, prefixes[level], context.catalogue)
            for level in range(1, codes_BPL.size(2))
        ]
        return [first, *later]

    def _prefixes_of(self, codes: Tensor) -> tuple[Tensor, ...]:
        """Codes (..., T) -> the prefixes (...) of 0 to T codes as numbers."""
        prefixes = [torch.zeros(codes.shape[:-1], dtype=torch.long, device=codes.device)]
        for level in range(codes.size(-1)):
            prefixes.append(prefixes[-1] * self.config.codes_per_level[level] + codes[..., level])
        return tuple(prefixes)

    def _pool(self, vectors_NE: Tensor) -> PrefixVectors:
        return self._prefix_tree().pool(vectors_NE)

    def _seen_items(self, items_BS: Tensor, counted_BS: Tensor) -> SeenItems | None:
        """The history's items where `counted_BS` (bool), for each request (B, 1, S); None where no head reads them."""
        if not self.config.repeat_bias:
            return None
        codes_B1SL = self.codes_of(items_BS)[:, None]
        shares_BSL = self._prefix_tree().share_of_item_NL[items_BS] * counted_BS[..., None]
        return SeenItems(self._prefixes_of(codes_B1SL[..., :-1]), codes_B1SL, shares_BSL[:, None])

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
        **_: Any,
    ) -> OneRecOutput:
        """Loss over target items, or logits over the flat vocabulary in the form of transformers' generate.

        Args:
            input_ids: (B, S) item index + 1, 0 for padding on the right.
            target_items: (B, P) the items after the last P of the 1 + S positions, for a causal or lazy context, or
                (B, 1) the item after the whole history; -100 where there is none.
            decoder_input_ids: (B, T) flat tokens [BOS, code, ...] with T <= L; used when no targets are given.
            labels: (B, T) flat tokens to predict, -100 to leave out.
            counted: bool, one or (B, 1): whether the rows count as load of experts; None for yes.
            pathways: what the encoder's pathways read, for a model that has any.
        """
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError("OneRec.forward needs input_ids or encoder_outputs")
            encoder_outputs = self.encoder(input_ids, attention_mask, counted, pathways)
        states_BSD, history_BS = encoder_outputs.last_hidden_state, encoder_outputs.input_ids
        assert states_BSD is not None
        assert history_BS is not None
        mask_BS = attention_mask.bool() if attention_mask is not None else history_BS.ne(PAD_TOKEN)
        items_BS = (history_BS - 1).clamp(min=0)
        mask_BS = self.encoder.real_positions(mask_BS, pathways)  # from here on S counts all positions of the context
        if target_items is not None:
            return self._target_loss(states_BSD, items_BS, mask_BS, target_items, counted)
        if decoder_input_ids is None:
            raise ValueError("OneRec.forward needs target_items or decoder_input_ids")
        logits_BTV = self._flat_logits(states_BSD, items_BS, mask_BS, decoder_input_ids)
        loss = None if labels is None else F.cross_entropy(logits_BTV.flatten(0, 1), labels.flatten())
        return OneRecOutput(loss=loss, logits=logits_BTV, encoder_last_hidden_state=states_BSD)

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

    def _target_loss(
        self,
        states_BSD: Tensor,
        items_BS: Tensor,  # the last S positions
        mask_BS: Tensor,
        target_items_BP: Tensor,
        counted: Tensor | None,
    ) -> OneRecOutput:
        has_target_BP = target_items_BP != IGNORED_TARGET
        counted_BP = has_target_BP if counted is None else has_target_BP & counted
        items_M = target_items_BP[has_target_BP]
        newest_BPD = _states_before_targets(states_BSD, mask_BS, target_items_BP.size(1))
        vectors_NE = self.encoder.item_vectors()
        item_loss, lesson, paths_M = None, None, items_M
        history = _histories_before_targets(items_BS, mask_BS[:, -items_BS.size(1) :], has_target_BP)
        lazy = self.config.context == "lazy"  # no context position has seen another, but BOS has seen them all
        if self.item_head is not None and not lazy:
            item_loss, lesson = self._item_loss(self.item_head, newest_BPD[has_target_BP], items_M, vectors_NE, history)
            paths_M = self._draw_paths(items_M, lesson)
        paths_BP = torch.zeros_like(target_items_BP).masked_scatter(has_target_BP, paths_M)
        keys, values = self.decoder.project_context(states_BSD)
        visible = self._visible_to_targets(mask_BS, target_items_BP.size(1))
        code_rows_BPL = self.encoder.code_rows_NL[paths_BP]
        hidden_BPLD = self.decoder(code_rows_BPL[..., :-1], newest_BPD, keys, values, visible, counted_BP)
        hidden_MLD = hidden_BPLD[has_target_BP]
        if self.item_head is not None and lazy:
            item_loss, lesson = self._item_loss(self.item_head, hidden_MLD[:, 0], items_M, vectors_NE, history)
        vectors = self._pool(vectors_NE) if self.config.prefix_vectors else None
        catalogue = Catalogue(vectors, self._seen_items(*history))
        level_losses_L = self._level_losses(hidden_MLD, paths_M, catalogue, lesson)
        loss = level_losses_L.sum()
        if self.training and self.config.prefix_loss_weight:
            sharpness = self.config.prefix_loss_sharpness
            loss = loss + self.config.prefix_loss_weight * prefix_loss(level_losses_L, sharpness)
        if item_loss is not None:
            loss = loss + self.config.item_head_weight * item_loss
        return OneRecOutput(
            loss=loss, level_losses_L=level_losses_L.detach(), item_loss=item_loss, num_targets=has_target_BP.sum()
        )

    def _visible_to_targets(self, mask_BS: Tensor, num_targets: int) -> Tensor:
        """Which context positions each decoder position sees, broadcast to (B, H, P * L, S)."""
        if num_targets == 1:
            return mask_BS[:, None, None, :]
        num_positions = mask_BS.size(1)
        causal_SS = torch.ones(num_positions, num_positions, dtype=torch.bool, device=mask_BS.device).tril()
        causal = causal_SS[-num_targets:].repeat_interleave(self.config.num_levels, dim=0)
        return causal if self.encoder.pathways is None else causal & mask_BS[:, None, None, :]

    def _item_loss(
        self, head: ItemHead, states_MD: Tensor, items_M: Tensor, vectors_NE: Tensor, history: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Lesson | None]:
        """Loss of the item head and, in training, what it teaches the code heads, where they are to learn from it."""
        history_MS, seen_MS = history
        if not (self.training and (self.config.item_distillation or self.config.path_sampling)):
            return F.cross_entropy(head(states_MD, vectors_NE, history_MS, seen_MS), items_M), None
        teacher = self._code_teacher()
        logits_MN = head(states_MD, vectors_NE[teacher.order_N], teacher.place_N[history_MS], seen_MS)
        log_probs_MN = logits_MN.log_softmax(dim=-1)
        return F.nll_loss(log_probs_MN, teacher.place_N[items_M]), teacher.lesson(log_probs_MN.detach().exp())

    def _draw_paths(self, items_M: Tensor, lesson: Lesson | None) -> Tensor:
        """The items whose codes the decoder reads and learns: the true ones, or by share drawn from the item head."""
        if lesson is None or not self.config.path_sampling or not len(items_M):
            return items_M
        drawn_M = torch.rand(items_M.shape, device=items_M.device) < self.config.path_sampling
        return torch.where(drawn_M, lesson.sample_items(), items_M)

    def _level_losses(self, hidden_MLD: Tensor, items_M: Tensor, catalogue: Catalogue, lesson: Lesson | None) -> Tensor:
        """Mean cross-entropy of each level, partly against the item head's distribution where one is given."""
        losses, codes_ML = [], self.codes_of(items_M)
        prefixes = self._prefixes_of(codes_ML[:, None, :-1])
        for level in range(self.config.num_levels):
            logits_MK = self.code_heads(hidden_MLD[:, None, level], level, prefixes[level], catalogue)[:, 0]
            loss = F.cross_entropy(logits_MK, codes_ML[:, level], label_smoothing=self._smoothing())
            if lesson is not None and self.config.item_distillation:
                soft_MK = lesson.code_targets(items_M, level)
                loss = torch.lerp(loss, F.cross_entropy(logits_MK, soft_MK), self.config.item_distillation)
            losses.append(loss)
        return torch.stack(losses)

    def _code_teacher(self) -> CodeTeacher:
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

    def _smoothing(self) -> float:
        return self.config.label_smoothing if self.training else 0.0

    def _flat_logits(self, states_BSD: Tensor, items_BS: Tensor, mask_BS: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """Logits (B, T, V): those of position t fill the codes of level t, the rest is -inf."""
        keys, values = self.decoder.project_context(states_BSD)
        code_rows_BT = decoder_input_ids[:, 1:] - NUM_SPECIAL_TOKENS
        first_rows_T = torch.tensor(self.decoder.first_rows[: code_rows_BT.size(1)], device=code_rows_BT.device)
        prefixes = self._prefixes_of((code_rows_BT - first_rows_T)[:, None])
        seen = self._seen_items(items_BS, mask_BS[:, -items_BS.size(1) :] & first_occurrences(items_BS))
        catalogue = Catalogue(self.pool_prefix_vectors(), seen)
        newest_B1D = _states_before_targets(states_BSD, mask_BS, num_targets=1)
        hidden_BTD = self.decoder(code_rows_BT[:, None], newest_B1D, keys, values, mask_BS[:, None, None, :])[:, 0]
        logits_BTV = hidden_BTD.new_full((*hidden_BTD.shape[:2], self.config.vocab_size), float("-inf"))
        for level in range(hidden_BTD.size(1)):
            first = self.config.level_offsets[level]
            logits_B1K = self.code_heads(hidden_BTD[:, level, None], level, prefixes[level], catalogue)
            logits_BTV[:, level, first : first + self.config.codes_per_level[level]] = logits_B1K[:, 0]
        return logits_BTV


def _states_before_targets(states_BSD: Tensor, mask_BS: Tensor, num_targets: int) -> Tensor:
    """The context state (B, P, D) of the newest position that each target follows."""
    if num_targets > 1:
        return states_BSD[:, -num_targets:]
    rows_B = torch.arange(states_BSD.size(0), device=states_BSD.device)
    newest_B = mask_BS.size(1) - 1 - mask_BS.flip(1).byte().argmax(dim=1)
    return states_BSD[rows_B, newest_B][:, None]


def _histories_before_targets(items_BS: Tensor, real_BS: Tensor, has_target_BP: Tensor) -> tuple[Tensor, Tensor]:
    """For each of M targets the items of its row (M, S), and which of them come before it (M, S)."""
    num_items, num_targets = items_BS.size(1), has_target_BP.size(1)
    rows_M, places_M = has_target_BP.nonzero(as_tuple=True)
    before_MS = real_BS[rows_M]
    if num_targets > 1:
        num_before_M = num_items + 1 - num_targets + places_M
        before_MS = before_MS & (torch.arange(num_items, device=items_BS.device) < num_before_M[:, None])
    return items_BS[rows_M], before_MS & first_occurrences(items_BS)[rows_M]


AutoModel.register(OneRecConfig, OneRec)
AutoModelForSeq2SeqLM.register(OneRecConfig, OneRec)
