"""What the targets of a batch cost: the cross-entropy of their codes level by level, and the auxiliary terms beside it.

Each term is a mean over the same targets, weighted where they have weights, so that parts of a step add up to it.

Shapes: B batch, S context positions (of the history's items alone where named so), P targets a row, M targets in all,
R code paths a target, L levels, T <= L of them, K codes of a level, N items, D width, E width of item vectors.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import Seq2SeqLMOutput

from kernels.catalogue_losses import catalogue_losses
from onerec.data.batches import IGNORED_TARGET
from onerec.model.adversarial import LogProbs, adversarial_losses, replayed_randomness, vulnerability
from onerec.model.distillation import Lessons
from onerec.model.heads import Catalogue, ItemHead
from onerec.model.prefix_loss import pairwise_prefix_losses, prefix_loss, worst_prefixes
from onerec.model.repeats import first_occurrences

if TYPE_CHECKING:
    from onerec.model.onerec import OneRec

Teach = Callable[[Tensor], LogProbs]  # items (B, P) whose codes are read -> a teacher's log-probabilities


@dataclass
class OneRecOutput(Seq2SeqLMOutput):
    """Loss and logits, with the parts of the loss and what they are means over."""

    level_losses_L: Tensor | None = None  # mean cross-entropy of each level
    item_loss: Tensor | None = None  # mean cross-entropy of the auxiliary item head
    id_loss: Tensor | None = None  # the same of the heads over item ids alone, added up
    prefix_loss: Tensor | None = None  # the auxiliary terms of training
    teacher_loss: Tensor | None = None
    adversarial_loss: Tensor | None = None
    num_targets: Tensor | None = None
    target_weight: Tensor | None = None  # of all targets together: their number where none has a weight


@dataclass(frozen=True, eq=False)
class TargetPass:
    """A batch whose context is encoded, and the items that its positions are to predict, -100 where there is none."""

    model: "OneRec"
    states_BSD: Tensor
    items_BS: Tensor  # the last of the context's positions
    mask_BS: Tensor
    target_items_BP: Tensor
    counted: Tensor | None = None  # bool, one or (B, 1): whether the rows count as load of experts; None for yes
    pathways: dict[str, Tensor] | None = None  # what the encoder's pathways read
    weights_BP: Tensor | None = None  # how much each target counts; None: all the same

    @cached_property
    def has_target(self) -> Tensor:
        """Where (B, P) there is a target."""
        return self.target_items_BP != IGNORED_TARGET

    @cached_property
    def items(self) -> Tensor:
        """The target items (M,)."""
        return self.target_items_BP[self.has_target]

    @cached_property
    def weights(self) -> Tensor | None:
        """How much each target (M,) counts; None: all the same."""
        return None if self.weights_BP is None else self.weights_BP[self.has_target]

    @cached_property
    def newest_states(self) -> Tensor:
        """The context state (B, P, D) before each target."""
        num_targets = self.target_items_BP.size(1)
        return self.model.states_before(self.states_BSD, self.mask_BS, num_targets, self.pathways)

    @cached_property
    def id_states(self) -> list[Tensor]:
        """Each id head's state (M, E) before each target."""
        mask_BS, num_targets = self.mask_BS[:, -1 - self.items_BS.size(1) :], self.target_items_BP.size(1)
        states = [head.states(self.items_BS, mask_BS[:, 1:].sum(dim=1)) for head in self.model.id_heads]
        return [states_before_targets(states_BSE, mask_BS, num_targets)[self.has_target] for states_BSE in states]

    @cached_property
    def item_vectors(self) -> Tensor:
        """The vector (N, E) of every item."""
        return self.model.encoder.item_vectors()

    @cached_property
    def history(self) -> tuple[Tensor, Tensor]:
        """For each target the items of its row (M, S), and which of them come before it; none where no head asks."""
        if not self.model.config.repeat_bias:
            nothing = self.items_BS.new_zeros(len(self.items), 0)
            return nothing, nothing.bool()
        return _histories_before_targets(self.items_BS, self.mask_BS[:, -self.items_BS.size(1) :], self.has_target)

    @cached_property
    def catalogue(self) -> Catalogue:
        """What the code heads look up for each target."""
        vectors = self.model.pool_prefix_vectors(self.item_vectors) if self.model.config.prefix_vectors else None
        return Catalogue(vectors, self.model.seen_items(*self.history))

    def mean(self, losses_M: Tensor) -> Tensor:
        """Mean over the targets by their weights."""
        return losses_M.mean() if self.weights is None else (self.weights * losses_M).sum() / self.weights.sum()

    def mean_loss(self, loss: Callable[..., Tensor], scores_M: Tensor, targets_M: Tensor, **options: float) -> Tensor:
        """The mean of one of torch's losses, by torch's own sum where no target has a weight."""
        if self.weights is None:
            return loss(scores_M, targets_M, **options)
        return self.mean(loss(scores_M, targets_M, reduction="none", **options))

    def hidden(self, paths_BP: Tensor) -> Tensor:
        """Decoder states (M, L, D) that have read the codes of an item a target (B, P)."""
        counted_BP = self.has_target if self.counted is None else self.has_target & self.counted
        return self._read(paths_BP[..., None], self.model.config.num_levels, counted_BP)[:, 0]

    def rival_hidden(self, paths_BPR: Tensor, num_levels: int) -> Tensor:
        """Decoder states (M, R, T, D) that have read codes of several items a target; none is load of experts."""
        num_read = paths_BPR.size(1) * paths_BPR.size(2)
        return self._read(paths_BPR, num_levels, self.has_target.new_zeros(len(paths_BPR), num_read))

    def level_logits(self, hidden_MRTD: Tensor, paths_MR: Tensor) -> Iterator[Tensor]:
        """Logits (M, R, K) of T levels, by states that have read the codes of items."""
        prefixes = self.model.prefixes_of(self.model.codes_of(paths_MR)[..., :-1])
        for level in range(hidden_MRTD.size(2)):
            yield self.model.code_heads(hidden_MRTD[:, :, level], level, prefixes[level], self.catalogue)

    def code_log_probs(self, hidden_MRTD: Tensor, paths_MR: Tensor) -> Tensor:
        """Log-probabilities (M, R, T) of the first T codes of items, each after those before it."""
        codes_MRL = self.model.codes_of(paths_MR)
        logits = enumerate(self.level_logits(hidden_MRTD, paths_MR))
        chosen = [all_K.log_softmax(dim=-1).gather(-1, codes_MRL[..., level, None]) for level, all_K in logits]
        return torch.cat(chosen, dim=-1)

    def distributions(self, paths_BP: Tensor) -> LogProbs:
        """Log-probabilities (M, K) of each level after the codes of an item a target (B, P)."""
        logits = self.level_logits(self.hidden(paths_BP)[:, None], paths_BP[self.has_target][:, None])
        return tuple(logits_M1K[:, 0].log_softmax(dim=-1) for logits_M1K in logits)

    def _read(self, paths_BPR: Tensor, num_levels: int, counted_BQ: Tensor) -> Tensor:
        """Decoder states (M, R, T, D) before the first T codes of R items a target; Q = P * R."""
        model, (num_targets, num_paths) = self.model, paths_BPR.shape[1:]
        newest_BQD = self.newest_states[:, :, None].expand(-1, -1, num_paths, -1).flatten(1, 2)
        keys, values = model.decoder.project_context(self.states_BSD)
        code_rows_BQL = model.encoder.code_rows_NL[paths_BPR.flatten(1)]
        visible = self._visible(num_targets, num_paths * num_levels)
        hidden_BQTD = model.decoder(code_rows_BQL[..., : num_levels - 1], newest_BQD, keys, values, visible, counted_BQ)
        return hidden_BQTD.unflatten(1, (num_targets, num_paths))[self.has_target]

    def _visible(self, num_targets: int, num_tokens: int) -> Tensor:
        """Which context positions each of so many tokens a target sees, broadcast to (B, H, P * tokens, S)."""
        if num_targets == 1:
            return self.mask_BS[:, None, None, :]
        num_positions = self.mask_BS.size(1)
        causal_SS = torch.ones(num_positions, num_positions, dtype=torch.bool, device=self.mask_BS.device).tril()
        causal = causal_SS[-num_targets:].repeat_interleave(num_tokens, dim=0)
        return causal if self.model.encoder.pathways is None else causal & self.mask_BS[:, None, None, :]


def target_loss(batch: TargetPass, teach: Teach | None = None) -> OneRecOutput:
    """The loss whose gradient trains the model; in evaluation mode the plain losses of codes and item head.

    `teach` is a teacher's reading of the batch, for a model with heads that learn from it.
    """
    model, config = batch.model, batch.model.config
    lazy = config.context == "lazy"  # no context position has seen another, but BOS has seen them all
    item_losses_H, lessons, paths_M = None, None, batch.items
    if model.item_head is not None and not lazy:
        states_MD = batch.newest_states[batch.has_target]
        item_losses_H, lessons = item_head_losses(batch, model.item_head, states_MD, config.path_sampling)
        paths_M = batch.items if lessons is None else lessons.paths_M
    paths_BP = torch.zeros_like(batch.target_items_BP).masked_scatter(batch.has_target, paths_M)
    hidden_MLD = batch.hidden(paths_BP)
    if model.item_head is not None and lazy:
        item_losses_H, lessons = item_head_losses(batch, model.item_head, hidden_MLD[:, 0], path_sampling=0.0)
    level_losses_L = _level_losses(batch, hidden_MLD, paths_M, lessons)
    outputs = OneRecOutput(level_losses_L=level_losses_L.detach())
    outputs.loss = level_losses_L.sum()
    if model.training and config.prefix_loss_weight:
        outputs.prefix_loss = _prefix_term(batch, level_losses_L, hidden_MLD, paths_M)
        outputs.loss = outputs.loss + config.prefix_loss_weight * outputs.prefix_loss
    if item_losses_H is not None:
        outputs.item_loss = item_losses_H[0]
        outputs.loss = outputs.loss + config.item_head_weight * outputs.item_loss
    if model.id_heads and item_losses_H is not None:
        outputs.id_loss = item_losses_H[1:].sum()
        outputs.loss = outputs.loss + outputs.id_loss  # without a weight: each trains nothing but its own head
    if model.teacher_heads is not None and teach is not None:
        outputs.teacher_loss = batch.mean(model.teacher_heads(hidden_MLD, teach(paths_BP)))
        outputs.loss = outputs.loss + config.teacher_weight * outputs.teacher_loss
    if model.training and config.adversarial_weight:
        outputs.adversarial_loss = _adversarial_term(batch)
        outputs.loss = outputs.loss + config.adversarial_weight * outputs.adversarial_loss
    outputs.num_targets = batch.has_target.sum()
    outputs.target_weight = outputs.num_targets if batch.weights is None else batch.weights.sum()
    return outputs


def item_head_losses(
    batch: TargetPass, head: ItemHead, states_MD: Tensor, path_sampling: float
) -> tuple[Tensor, Lessons | None]:
    """Losses (H,) of the item head and of the heads over ids; in training what all together teach the codes."""
    config = batch.model.config
    items_N, (columns_MS, seen_MS), targets_M, lessons = None, batch.history, batch.items, None
    if batch.model.training and (config.item_distillation or path_sampling):
        teacher = batch.model.code_teacher()
        items_N, columns_MS, targets_M = teacher.order_N, teacher.place_N[columns_MS], teacher.place_N[targets_M]
        lessons = Lessons(teacher, batch.items, path_sampling)
    vectors_NE = batch.item_vectors if items_N is None else batch.item_vectors[items_N]
    heads = [head(states_MD, vectors_NE, columns_MS, seen_MS)]
    for id_head, states_ME in zip(batch.model.id_heads, batch.id_states, strict=True):
        heads.append(id_head(states_ME, items_N, columns_MS, seen_MS))
    return catalogue_losses(heads, targets_M, batch.weights, None if lessons is None else lessons.take), lessons


def _level_losses(batch: TargetPass, hidden_MLD: Tensor, paths_M: Tensor, lessons: Lessons | None) -> Tensor:
    """Mean cross-entropy of each level, partly against the item head's distribution where one is given."""
    config, codes_ML = batch.model.config, batch.model.codes_of(paths_M)
    smoothing = config.label_smoothing if batch.model.training else 0.0
    losses = []
    for level, logits_M1K in enumerate(batch.level_logits(hidden_MLD[:, None], paths_M[:, None])):
        logits_MK = logits_M1K[:, 0]
        loss = batch.mean_loss(F.cross_entropy, logits_MK, codes_ML[:, level], label_smoothing=smoothing)
        if lessons is not None and config.item_distillation:
            soft_loss = batch.mean_loss(F.cross_entropy, logits_MK, lessons.code_targets[level])
            loss = torch.lerp(loss, soft_loss, config.item_distillation)
        losses.append(loss)
    return torch.stack(losses)


def _prefix_term(batch: TargetPass, level_losses_L: Tensor, hidden_MLD: Tensor, paths_M: Tensor) -> Tensor:
    """APAO's term, point-wise, or pair-wise among as many rivals as the config says."""
    config = batch.model.config
    if not config.prefix_rivals:
        return prefix_loss(level_losses_L, config.prefix_loss_sharpness)
    num_prefixes, shape = config.num_levels - 1, (*batch.target_items_BP.shape, config.prefix_rivals)
    rivals_BPR = torch.randint(config.num_items, shape, device=paths_M.device)
    rivals_MR = rivals_BPR[batch.has_target]
    codes_ML, codes_MRL = batch.model.codes_of(paths_M), batch.model.codes_of(rivals_MR)
    differ_MRT = (codes_MRL != codes_ML[:, None])[..., :num_prefixes]
    own_MT = batch.code_log_probs(hidden_MLD[:, None, :num_prefixes], paths_M[:, None])[:, 0]
    others_MRT = batch.code_log_probs(batch.rival_hidden(rivals_BPR, num_prefixes), rivals_MR)
    losses_MT = pairwise_prefix_losses(own_MT, others_MRT, differ_MRT)
    return worst_prefixes(torch.stack([batch.mean(losses_M) for losses_M in losses_MT.T]), config.prefix_loss_sharpness)


def _adversarial_term(batch: TargetPass) -> Tensor:
    """Mean divergence of what is predicted after the true codes when the history's vectors move."""
    model, encoder = batch.model, batch.model.encoder
    real_BS = batch.mask_BS[:, -batch.items_BS.size(1) :]
    paths_BP = batch.target_items_BP.clamp(min=0)
    seed, uncounted = int(torch.randint(2**31, ())), batch.has_target.new_zeros(())

    def predict(move_BSE: Tensor | None) -> LogProbs:
        with replayed_randomness(seed, paths_BP.device):
            lengths_B = real_BS.sum(dim=1)
            states_BSD = encoder.encode(batch.items_BS, lengths_B, uncounted, batch.pathways, move_BSE)
            return replace(batch, states_BSD=states_BSD, counted=uncounted).distributions(paths_BP)

    with torch.no_grad():
        clean, vectors_BSE = predict(None), encoder.embedding(batch.items_BS, encoder.code_rows_NL) * real_BS[..., None]
        sizes_B = model.config.adversarial_size * vectors_BSE.flatten(1).norm(dim=1)
        if model.config.adversarial_by_fit:
            sizes_B = sizes_B * vulnerability(_row_losses(batch, clean))
    start_BSE = torch.randn_like(vectors_BSE) * real_BS[..., None]
    return batch.mean(adversarial_losses(predict, clean, start_BSE, sizes_B))


def _row_losses(batch: TargetPass, log_probs: LogProbs) -> Tensor:
    """Mean loss (B,) of each row's targets, 0 where it has none."""
    codes_ML, rows_M = batch.model.codes_of(batch.items), batch.has_target.nonzero()[:, 0]
    by_level = [level_MK.gather(1, codes_ML[:, level, None])[:, 0] for level, level_MK in enumerate(log_probs)]
    sums_B = log_probs[0].new_zeros(len(batch.has_target)).index_add(0, rows_M, -torch.stack(by_level).sum(dim=0))
    return sums_B / batch.has_target.sum(dim=1).clamp(min=1)


def states_before_targets(states_BSD: Tensor, mask_BS: Tensor, num_targets: int) -> Tensor:
    """The context state (B, P, D) of the newest position that each target follows."""
    if num_targets > 1:
        return states_BSD[:, -num_targets:]
    rows_B = torch.arange(states_BSD.size(0), device=states_BSD.device)
    newest_B = mask_BS.size(1) - 1 - mask_BS.flip(1).byte().argmax(dim=1)
    return states_BSD[rows_B, newest_B][:, None]


def _histories_before_targets(items_BS: Tensor, real_BS: Tensor, has_target_BP: Tensor) -> tuple[Tensor, Tensor]:
    num_items, num_targets = items_BS.size(1), has_target_BP.size(1)
    rows_M, places_M = has_target_BP.nonzero(as_tuple=True)
    before_MS = real_BS[rows_M]
    if num_targets > 1:
        num_before_M = num_items + 1 - num_targets + places_M
        before_MS = before_MS & (torch.arange(num_items, device=items_BS.device) < num_before_M[:, None])
    return items_BS[rows_M], before_MS & first_occurrences(items_BS)[rows_M]
