"""The loss's options: weights, rivals, teachers and moves give what a plain calculation gives, and only in training."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onerec.data.batches import IGNORED_TARGET
from onerec.model.adversarial import divergences
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from onerec.model.prefix_loss import pairwise_prefix_losses, worst_prefixes
from onerec.model.teacher_heads import TeacherHeads

SIZES = [5, 4, 6]
NUM_ITEMS = 40
RICH = {"item_head_weight": 0.5, "prefix_vectors": True, "repeat_bias": True, "bos_reads_context": True}
CONTEXTS = [{"context": "causal", **RICH}, {"context": "bidirectional"}, {"context": "lazy"}]
MANY = {
    "input_ids": torch.tensor([[4, 18, 31, 5], [9, 9, 0, 0]]),
    "target_items": torch.tensor([[9, 17, 30, 4, 21], [1, IGNORED_TARGET, 5, IGNORED_TARGET, IGNORED_TARGET]]),
}
ONE = {"input_ids": MANY["input_ids"], "target_items": torch.tensor([[21], [5]])}


def build_model(**changes: Any) -> OneRec:
    torch.manual_seed(1)
    shape = {"d_model": 16, "num_heads": 2, "d_ff": 32, "max_history_items": 8, "dropout": 0.0, **changes}
    model = OneRec(OneRecConfig(SIZES, NUM_ITEMS, **shape))
    model.set_codes(np.random.default_rng(0).integers(0, SIZES, (NUM_ITEMS, 3)), "hash-of-the-table")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.train()


def batch_for(context: dict[str, Any]) -> dict[str, Tensor]:
    return ONE if context["context"] == "bidirectional" else MANY


def seeded(model: OneRec, **inputs: Any) -> Any:
    torch.manual_seed(7)
    return model(**inputs)


def single_targets(targets_BP: Tensor) -> list[tuple[tuple[int, int], Tensor]]:
    """For each target its place, and the targets without the others."""
    places = [(int(row), int(place)) for row, place in (targets_BP != IGNORED_TARGET).nonzero()]
    alone = [torch.full_like(targets_BP, IGNORED_TARGET) for _ in places]
    for place, targets in zip(places, alone, strict=True):
        targets[place] = targets_BP[place]
    return list(zip(places, alone, strict=True))


@pytest.mark.parametrize("context", CONTEXTS)
def test_weights_weigh_the_mean_of_single_targets(context: dict[str, Any]) -> None:
    model, inputs = build_model(**context), batch_for(context)
    targets_BP = inputs["target_items"]
    weights_BP = torch.arange(1.0, 1 + targets_BP.numel()).view_as(targets_BP) * (targets_BP != IGNORED_TARGET)
    found = model(**inputs, target_weights=weights_BP)
    parts = [
        (float(weights_BP[place]), model(input_ids=inputs["input_ids"], target_items=targets).loss)
        for place, targets in single_targets(targets_BP)
    ]
    total = sum(weight for weight, _ in parts)
    torch.testing.assert_close(found.loss, sum(weight * loss for weight, loss in parts) / total)
    assert found.target_weight.item() == pytest.approx(total)
    even, plain = model(**inputs, target_weights=0.5 * (weights_BP > 0)), model(**inputs)
    torch.testing.assert_close(even.loss, plain.loss)
    assert plain.target_weight == plain.num_targets == len(parts)


@pytest.mark.parametrize("context", CONTEXTS)
def test_rivals_are_scored_as_decoding_scores_them(context: dict[str, Any]) -> None:
    model = build_model(**context, prefix_loss_weight=0.3, prefix_rivals=3, prefix_loss_sharpness=2.0)
    plain, inputs = build_model(**context), batch_for(context)
    outputs = seeded(model, **inputs)
    torch.manual_seed(7)
    rivals_BPR = torch.randint(NUM_ITEMS, (*inputs["target_items"].shape, 3))
    losses = []
    for (row, place), _ in single_targets(inputs["target_items"]):
        length = int((inputs["input_ids"][row] > 0).sum()) if inputs is ONE else place
        history = (inputs["input_ids"][row : row + 1, : max(length, 1)] - 1).clamp(min=0)
        seen = plain.eval().encode(history, torch.tensor([length]))
        items = torch.cat([inputs["target_items"][row, place : place + 1], rivals_BPR[row, place]])
        codes = plain.codes_of(items)
        levels = [level.log_softmax(dim=-1).expand(1, 4, -1) for level in plain.score_levels(seen, codes[None])]
        log_probs = torch.stack([levels[level][0, range(4), codes[:, level]] for level in range(2)], dim=-1)
        differ = (codes[1:] != codes[:1])[:, :2]
        losses.append(pairwise_prefix_losses(log_probs[:1], log_probs[None, 1:], differ[None])[0])
    expected = worst_prefixes(torch.stack(losses).mean(dim=0), 2.0)
    torch.testing.assert_close(outputs.prefix_loss, expected)
    torch.testing.assert_close(outputs.loss, seeded(plain.train(), **inputs).loss + 0.3 * expected)
    assert model.eval()(**inputs).prefix_loss is None


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_worst_move_changes_more_than_random_ones(context: dict[str, Any]) -> None:
    inputs = batch_for(context)
    model = build_model(**context, adversarial_weight=0.7, adversarial_size=0.2)
    tried: list[Tensor] = []
    encode = model.encoder.encode
    model.encoder.encode = lambda *inputs: tried.append(inputs[-1]) or encode(*inputs)
    outputs, plain = seeded(model, **inputs), seeded(build_model(**context), **inputs)
    model.encoder.encode = encode
    torch.testing.assert_close(outputs.loss, plain.loss + 0.7 * outputs.adversarial_loss)
    vectors = model.encoder.embedding((inputs["input_ids"] - 1).clamp(min=0), model.encoder.code_rows_NL).detach()
    real_BS1 = (inputs["input_ids"] > 0)[..., None]
    sizes_B = 0.2 * (vectors * real_BS1).flatten(1).norm(dim=1)
    for move in tried[-2:]:  # the random place and the worst one
        torch.testing.assert_close(move.flatten(1).norm(dim=1), sizes_B)
        assert (move * ~real_BS1 == 0).all()
    for _ in range(20):
        move = torch.randn_like(vectors) * real_BS1
        move = move * (sizes_B / move.flatten(1).norm(dim=1))[:, None, None]
        assert 0 < change_by(model, inputs, move) < outputs.adversarial_loss
    assert model.eval()(**inputs).adversarial_loss is None


def change_by(model: OneRec, inputs: dict[str, Tensor], move_BSE: Tensor) -> Tensor:
    """Mean divergence that a move of the histories' vectors makes."""
    items_BS, lengths_B = (inputs["input_ids"] - 1).clamp(min=0), (inputs["input_ids"] > 0).sum(dim=1)
    paths_BP, distributions = inputs["target_items"].clamp(min=0), []
    for moved in (None, move_BSE):
        encoded = model.encoder(inputs["input_ids"])
        encoded.last_hidden_state = model.encoder.encode(items_BS, lengths_B, moves_BSE=moved)
        distributions.append(model.target_pass(encoded, inputs["target_items"]).distributions(paths_BP))
    return divergences(distributions[0], distributions[1]).mean()


def test_moves_see_one_dropout_and_leave_the_other_terms_alone() -> None:
    noisy = {"dropout": 0.5, "layer_dropout": 0.3, "num_experts": 4, **RICH}
    tiny = seeded(build_model(**noisy, adversarial_weight=1.0, adversarial_size=1e-4), **MANY)
    plain = seeded(build_model(**noisy), **MANY)
    assert tiny.adversarial_loss.item() < 1e-5
    torch.testing.assert_close(tiny.level_losses_L, plain.level_losses_L, rtol=0, atol=0)
    larger, smaller = (
        seeded(build_model(**RICH, adversarial_weight=1.0, adversarial_by_fit=by_fit), **MANY).adversarial_loss
        for by_fit in (False, True)
    )
    assert 0 < smaller < larger


def test_moves_are_found_under_autocast() -> None:
    """Gradients within the forward pass are taken as those of a backward pass, which autocast does not reach."""
    model = build_model(**RICH, adversarial_weight=1.0)
    exact = seeded(model, **MANY).adversarial_loss
    with torch.autocast("cpu", torch.bfloat16):
        coarse = seeded(model, **MANY)
    coarse.loss.backward()
    assert coarse.adversarial_loss.item() == pytest.approx(exact.item(), rel=0.3)


def test_teacher_heads_by_hand() -> None:
    heads = TeacherHeads(OneRecConfig([2, 2], 4, d_model=2, teacher_weight=1.0, teacher_temperature=2.0))
    with torch.no_grad():
        for head in heads.levels:
            head.weight.copy_(torch.eye(2))
    hidden = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])  # probabilities 1/2, 1/2 and, by half the logits, e / (1 + e)
    taught = (torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log())
    p, q = 0.8**0.5 / (0.8**0.5 + 0.2**0.5), np.e / (1 + np.e)
    first = p * np.log(p / 0.5) + (1 - p) * np.log((1 - p) / 0.5)
    second = 0.5 * np.log(0.5 / q) + 0.5 * np.log(0.5 / (1 - q))
    assert heads(hidden, taught).tolist() == pytest.approx([4 * (first + second)])


@pytest.mark.parametrize("changes", [{}, {"path_sampling": 0.5, **RICH}])
def test_a_teacher_is_told_what_the_decoder_reads(changes: dict[str, Any]) -> None:
    student, teacher = build_model(**changes, teacher_weight=0.4), build_model(d_ff=48, num_context_layers=3).eval()
    read = []

    def teach(paths_BP: Tensor) -> tuple[Tensor, ...]:
        read.append(paths_BP)
        with torch.no_grad():
            return teacher.target_pass(teacher.encoder(MANY["input_ids"]), MANY["target_items"]).distributions(paths_BP)

    untaught = build_model(**changes)
    student.load_state_dict(untaught.state_dict(), strict=False)
    outputs, plain = seeded(student, **MANY, teach=teach), seeded(untaught, **MANY)
    torch.testing.assert_close(outputs.loss, plain.loss + 0.4 * outputs.teacher_loss)
    assert outputs.teacher_loss > 0
    has_target = MANY["target_items"] != IGNORED_TARGET
    assert (read[0][has_target] == MANY["target_items"][has_target]).all() == (not changes)
    outputs.loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.eval()(**MANY).teacher_loss is None


def test_all_weights_have_gradients_whoever_passes_blocks_by() -> None:
    model = build_model(**RICH, layer_dropout=0.95, num_context_layers=3, num_decoder_layers=3, final_dropout=0.1)
    seeded(model, **MANY).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    evaluated = build_model(**RICH, num_context_layers=3, num_decoder_layers=3).eval()
    torch.testing.assert_close(model.eval()(**MANY).loss, evaluated(**MANY).loss, rtol=0, atol=0)
