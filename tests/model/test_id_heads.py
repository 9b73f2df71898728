"""Heads over item ids: the same states in training and decoding, their share in lessons, and no other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from onerec.errors import ArtifactError
from onerec.model.configuration import OneRecConfig
from onerec.model.new_items import with_new_items
from onerec.model.onerec import OneRec
from onerec.model.settings import ModelSettings
from onerec.model.target_loss import TargetPass, item_head_losses
from onerec.training.pretraining import Fitted, build_model
from tokenizer.table import SemanticIdTable

SIZES, NUM_ITEMS = (4, 3, 3), 20
CODES_NL = np.stack(np.unravel_index(np.random.default_rng(0).choice(36, NUM_ITEMS, replace=False), SIZES), axis=1)
TABLE = SemanticIdTable.of_unique(CODES_NL.astype(np.int32), SIZES, [f"item-{item}" for item in range(NUM_ITEMS)])
INPUT_IDS = torch.tensor([[4, 18, 9], [2, 0, 0], [0, 0, 0]])  # item + 1
TARGET_ITEMS = torch.tensor([[3, 17, 8, 5], [1, 6, -100, -100], [7, -100, -100, -100]])


def make_model(**changes: object) -> OneRec:
    torch.manual_seed(0)
    shape = {"d_model": 16, "num_heads": 2, "d_ff": 32, "max_history_items": 6, "dropout": 0.0, "repeat_bias": True}
    heads = {"item_head_weight": 1.0, "id_head_width": 8, "num_id_heads": 2, "id_head_dropout": 0.0}
    model = OneRec(OneRecConfig(SIZES, NUM_ITEMS, **{**shape, **heads, **changes})).eval()
    model.set_codes(TABLE.codes_NL, TABLE.content_hash)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def target_pass(model: OneRec, target_items: torch.Tensor = TARGET_ITEMS) -> TargetPass:
    return model.target_pass(model.encoder(INPUT_IDS), target_items)


def states_after(model: OneRec, history: list[int]) -> torch.Tensor:
    """What decoding reads (heads, E) of a history."""
    context = model.encode(torch.tensor([history or [0]]), torch.tensor([len(history)]))
    return torch.cat(context.id_states)


@torch.inference_mode()
def test_states_before_targets_are_those_of_decoding() -> None:
    model = make_model()
    histories = [[], [3], [3, 17], [3, 17, 8], [], [1], []]
    expected = torch.stack([states_after(model, history) for history in histories], dim=1)
    torch.testing.assert_close(torch.stack(target_pass(model).id_states), expected)
    newest = target_pass(make_model(context="bidirectional"), torch.tensor([[5], [6], [7]])).id_states
    torch.testing.assert_close(torch.stack(newest), expected[:, [3, 5, 6]])
    assert not torch.allclose(expected[0], expected[1])


@torch.inference_mode()
def test_logits_of_few_items_are_those_of_all() -> None:
    model, items_N = make_model(num_id_heads=1), torch.arange(NUM_ITEMS)
    (head,), batch = model.id_heads, target_pass(model)
    columns_MS, seen_MS = batch.history
    logits_MN = head(batch.id_states[0], items_N, columns_MS, seen_MS).logits()
    seen_MN = torch.zeros(len(logits_MN), NUM_ITEMS).scatter_add_(1, columns_MS, seen_MS.float()) > 0
    items_MW = torch.tensor([[3, 0, 19]]).expand(len(logits_MN), -1)
    scores_MW = head.score(batch.id_states[0], items_MW, seen_MN.gather(1, items_MW))
    torch.testing.assert_close(scores_MW, logits_MN.gather(1, items_MW))
    assert seen_MN.any()


@pytest.mark.parametrize("num_id_heads", [1, 2])
def test_a_lesson_is_the_mean_of_all_heads_and_losses_are_their_cross_entropies(num_id_heads: int) -> None:
    model = make_model(item_distillation=0.5, num_id_heads=num_id_heads).train()
    batch = target_pass(model)
    states_MD = batch.newest_states[batch.has_target]
    losses_H, lessons = item_head_losses(batch, model.item_head, states_MD, path_sampling=0.0)
    vectors_NE, (columns_MS, seen_MS) = model.encoder.item_vectors(), batch.history
    heads = [model.item_head(states_MD, vectors_NE, columns_MS, seen_MS)]
    for head, states_ME in zip(model.id_heads, batch.id_states, strict=True):
        heads.append(head(states_ME, torch.arange(NUM_ITEMS), columns_MS, seen_MS))
    logits = [head.logits() for head in heads]
    for loss, logits_MN in zip(losses_H, logits, strict=True):
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits_MN, batch.items))
    mean_MN = torch.stack([logits_MN.softmax(dim=-1) for logits_MN in logits]).mean(dim=0).detach()
    assert len(logits) == 1 + num_id_heads
    teacher = model.code_teacher()
    lesson = teacher.lesson(mean_MN[:, teacher.order_N])
    torch.testing.assert_close(lessons.paths_M, batch.items)
    for level, targets_MK in enumerate(lessons.code_targets):
        torch.testing.assert_close(targets_MK, lesson.code_targets(batch.items, level))


def test_no_other_loss_reaches_it_and_its_own_reaches_nothing_else() -> None:
    model = make_model(item_distillation=0.5).train()
    outputs = model(input_ids=INPUT_IDS, target_items=TARGET_ITEMS)
    own = {name for name, _ in model.named_parameters() if name.startswith("id_heads.")}
    outputs.id_loss.backward(retain_graph=True)
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name for name in reached if model.get_parameter(name).grad.any()} == own
    model.zero_grad()
    (outputs.loss - outputs.id_loss).backward()
    assert all(not parameter.grad.any() for name, parameter in model.named_parameters() if name in own)


def test_a_batch_without_a_history_has_states() -> None:
    model = make_model()
    for head in model.id_heads:
        assert head.states(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, dtype=torch.long)).shape == (2, 1, 8)


def test_new_items_start_among_their_kin() -> None:
    free_NL = np.array([code for code in np.ndindex(SIZES) if list(code) not in CODES_NL.tolist()][:1], dtype=np.int32)
    ids = [f"item-{item}" for item in range(NUM_ITEMS + 1)]
    grown_table = SemanticIdTable.of_unique(np.concatenate([TABLE.codes_NL, free_NL]), SIZES, ids)
    model = make_model()
    kin = np.flatnonzero((TABLE.codes_NL[:, :2] == free_NL[:, :2]).all(axis=1))
    assert len(kin)
    for head, grown_head in zip(model.id_heads, with_new_items(model, grown_table).id_heads, strict=True):
        old_NE, new_NE = (each.network.items.weight for each in (head, grown_head))
        torch.testing.assert_close(new_NE[:NUM_ITEMS], old_NE)
        torch.testing.assert_close(new_NE[NUM_ITEMS], old_NE[kin].mean(dim=0))


@pytest.mark.parametrize(("width", "number"), [(0, 0), (8, 1), (8, 2)])
def test_a_stored_model_is_the_same(width: int, number: int, tmp_path: Path) -> None:
    model = make_model(id_head_width=width, num_id_heads=max(number, 1))
    model.save_pretrained(tmp_path)
    again = OneRec.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)
    assert len(again.id_heads) == number


def test_heads_after_the_first_start_from_the_tokenizers_vectors() -> None:
    vectors_NV = np.random.default_rng(0).standard_normal((NUM_ITEMS, 20)).astype(np.float32)
    settings = ModelSettings(d_model=16, num_heads=2, d_ff=32, id_head_width=8, num_id_heads=3, id_head_start=0.5)
    model = build_model(settings, TABLE, Fitted(item_vectors_NV=vectors_NV))
    first, second, third = (head.network.items.weight.detach() for head in model.id_heads)
    assert [float(table.square().mean().sqrt()) for table in (second, third)] == pytest.approx([0.5, 0.5])
    torch.testing.assert_close(second @ second.T, third @ third.T)  # the same vectors, turned
    assert not torch.allclose(second, third)
    assert not torch.allclose(first @ first.T, second @ second.T, atol=0.5)
    with pytest.raises(ArtifactError, match=r"model\.id_head_start: found no item vectors"):
        build_model(settings, TABLE)
