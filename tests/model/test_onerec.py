"""The model: training, decoding and transformers' form give the same numbers; padding and options change nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM

from onerec.data.batches import IGNORED_TARGET
from onerec.decoding.beam import beam_search
from onerec.decoding.trie import Trie
from onerec.errors import ArtifactError
from onerec.model.configuration import OneRecConfig
from onerec.model.distillation import CodeTeacher
from onerec.model.onerec import OneRec
from onerec.model.prefix_loss import prefix_loss
from onerec.model.target_loss import item_head_losses

CODES_PER_LEVEL = [5, 4, 6]
NUM_ITEMS = 40
CONTEXTS = [
    {"context": "causal"},
    {"context": "causal", "bos_reads_context": True},
    {"context": "causal", "prefix_vectors": True, "repeat_bias": True},
    {"context": "bidirectional"},
    {"context": "bidirectional", "bos_reads_context": True},
    {"context": "lazy"},
    {"context": "lazy", "prefix_vectors": True, "repeat_bias": True},
]
MANY_TARGET_CONTEXTS = [changes for changes in CONTEXTS if changes["context"] != "bidirectional"]


def build_model(**changes: object) -> OneRec:
    torch.manual_seed(1)
    shape = {"d_model": 16, "num_heads": 2, "d_ff": 32, "max_history_items": 8, **changes}
    model = OneRec(OneRecConfig(codes_per_level=CODES_PER_LEVEL, num_items=NUM_ITEMS, **shape)).eval()
    model.set_codes(np.random.default_rng(0).integers(0, CODES_PER_LEVEL, (NUM_ITEMS, 3)), "hash-of-the-table")
    # Larger embeddings than at the start of training, so that a lost term cannot hide below the tolerance.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def codes_of(model: OneRec) -> torch.Tensor:
    return model.codes_of(torch.arange(NUM_ITEMS))


def log_probabilities_by_steps(model: OneRec, history: list[int], item: int) -> torch.Tensor:
    """What beam search would sum for `item`, level by level (L,)."""
    context = model.encode(torch.tensor([history or [0]]), torch.tensor([len(history)]))
    cache, chosen, found = model.new_cache(), None, []
    for level, code in enumerate(codes_of(model)[item]):
        found.append(model.decode_step(chosen, level, context, cache)[0, 0, code])
        chosen = code.view(1, 1)
    return torch.stack(found)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_decoding_steps_give_the_training_loss(context: dict[str, object], activation: str) -> None:
    model = build_model(**context, activation=activation)
    history, item = [3, 17, 30, 3], 22
    output = model(input_ids=torch.tensor([history]) + 1, target_items=torch.tensor([[item]]))
    torch.testing.assert_close(output.level_losses_L, -log_probabilities_by_steps(model, history, item))


@pytest.mark.parametrize("num_experts", [0, 4])
@pytest.mark.parametrize("context", MANY_TARGET_CONTEXTS)
def test_every_position_equals_its_one_target_form(context: dict[str, object], num_experts: int) -> None:
    model = build_model(**context, num_experts=num_experts, item_head_weight=0.5)
    histories, targets = [[3, 17, 30, 4], [8, 8]], [[9, 17, 30, 4, 21], [1, 8, 5]]
    many = model(
        input_ids=torch.tensor([[4, 18, 31, 5], [9, 9, 0, 0]]),
        target_items=torch.tensor([targets[0], [*targets[1], IGNORED_TARGET, IGNORED_TARGET]]),
    )
    single = [
        model(input_ids=torch.tensor([[i + 1 for i in history[:cut]] or [0]]), target_items=torch.tensor([[row[cut]]]))
        for history, row in zip(histories, targets, strict=True)
        for cut in range(len(row))
    ]
    assert many.num_targets == 8
    torch.testing.assert_close(many.loss, torch.stack([output.loss for output in single]).mean())
    torch.testing.assert_close(many.item_loss, torch.stack([output.item_loss for output in single]).mean())


@pytest.mark.parametrize("positions", ["from_start", "from_end"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_padding_and_company_change_nothing(context: dict[str, object], positions: str) -> None:
    model = build_model(**context, positions=positions)
    alone = model.decode_step(None, 0, model.encode(torch.tensor([[3, 9]]), torch.tensor([2])), model.new_cache())
    rows = torch.tensor([[3, 9, 39, 39], [1, 2, 3, 4]])
    together = model.decode_step(None, 0, model.encode(rows, torch.tensor([2, 4])), model.new_cache())
    torch.testing.assert_close(together[:1], alone)


@pytest.mark.parametrize("context", MANY_TARGET_CONTEXTS)
def test_leading_positions_without_targets_may_be_left_out(context: dict[str, object]) -> None:
    model = build_model(**context, item_head_weight=1.0).eval()
    input_ids = torch.tensor([[3, 1, 4, 2], [5, 9, 2, 6]])
    targets = torch.tensor([[-100, -100, -100, 6, 8], [-100, -100, 7, -100, 1]])
    whole, cut = (model(input_ids=input_ids, target_items=some) for some in (targets, targets[:, 2:]))
    assert whole.num_targets == cut.num_targets == 4
    torch.testing.assert_close(cut.level_losses_L, whole.level_losses_L)
    torch.testing.assert_close(cut.item_loss, whole.item_loss)


def test_positions_from_the_end_number_the_newest_item_zero() -> None:
    model = build_model(positions="from_end")
    long, short = torch.tensor([[3, 17, 30]]), torch.tensor([[3, 17, 30, 0, 0]])
    with torch.no_grad():
        model.encoder.positions.weight[3:] = float("nan")  # three items need the positions 0 to 2 alone
    states = [model.encode(items, torch.tensor([3])).states_BSD[0, :4] for items in (long, short)]
    torch.testing.assert_close(states[0], states[1])
    with torch.no_grad():
        model.encoder.positions.weight[0] += 1  # of the newest item
    moved = model.encode(long, torch.tensor([3])).states_BSD[0]
    torch.testing.assert_close(moved[:3], states[0][:3])
    assert not torch.allclose(moved[3], states[0][3])


def test_bos_carries_the_state_of_the_newest_item_alone() -> None:
    model = build_model(bos_reads_context=True)
    histories = torch.tensor([[3, 17, 30], [9, 17, 30], [3, 30, 17]])
    with torch.no_grad():
        for block in model.encoder.blocks:  # states are item vectors, not mixtures
            block.attention.output.weight.zero_()
        for block in model.decoder.blocks:  # and the decoder reads them through BOS alone
            block.cross_attention.output.weight.zero_()
    first = model.decode_step(None, 0, model.encode(histories, torch.tensor([3, 3, 3])), model.new_cache())
    torch.testing.assert_close(first[0], first[1])
    assert not torch.allclose(first[0], first[2])


@pytest.mark.parametrize("context", ["causal", "lazy"])
def test_user_without_history_has_finite_probabilities(context: str) -> None:
    log_probs = log_probabilities_by_steps(build_model(context=context), [], 5)
    assert torch.isfinite(log_probs).all()


def test_causal_context_ignores_the_future() -> None:
    model = build_model()
    first = model.encoder.encode(torch.tensor([[3, 9, 7]]), torch.tensor([3]))
    second = model.encoder.encode(torch.tensor([[3, 9, 30]]), torch.tensor([3]))
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3], second[:, 3])


@pytest.mark.parametrize("context", ["causal", "bidirectional", "lazy"])
def test_bfloat16_blocks_give_nearly_the_same_float32_scores(context: str) -> None:
    model = build_model(context=context)
    coarse = model.for_decoding("bfloat16")
    fine_L = log_probabilities_by_steps(model, [3, 17, 30, 3], 22)
    coarse_L = log_probabilities_by_steps(coarse, [3, 17, 30, 3], 22)
    assert coarse_L.dtype == torch.float32
    assert 0 < (fine_L - coarse_L).abs().max() < 0.05
    assert model.for_decoding("float32") is model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_beams_follow_their_parents() -> None:
    model = build_model()
    context, cache = model.encode(torch.tensor([[3, 9]]), torch.tensor([2])), model.new_cache()
    model.decode_step(None, 0, context, cache)
    cache.reorder(torch.zeros(1, 3, dtype=torch.long))
    model.decode_step(torch.tensor([[0, 1, 2]]), 1, context, cache)
    cache.reorder(torch.tensor([[2, 0, 0]]))
    found = model.decode_step(torch.tensor([[3, 1, 2]]), 2, context, cache)
    for beam, prefix in enumerate([(2, 3), (0, 1), (0, 2)]):
        lone = model.new_cache()
        model.decode_step(None, 0, context, lone)
        model.decode_step(torch.tensor([[prefix[0]]]), 1, context, lone)
        expected = model.decode_step(torch.tensor([[prefix[1]]]), 2, context, lone)
        torch.testing.assert_close(found[:, beam], expected[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("context", [{}, {"context": "lazy"}, {"num_experts": 4}])
def test_compiled_steps_decode_alike(context: dict[str, object]) -> None:
    model = build_model(prefix_vectors=True, repeat_bias=True, head_dim=32, **context)
    codes_NL = np.stack(np.unravel_index(np.arange(0, 120, 3), CODES_PER_LEVEL), axis=1)
    model.set_codes(codes_NL, "hash-of-the-table")
    trie = Trie.from_table(codes_NL, CODES_PER_LEVEL)
    found = []
    for compiled in (False, True):
        model.decoder.compiled = compiled
        for rows, lengths in ([[3, 9, 4], [1, 2, 0]], [3, 2]), ([[7]], [1]):  # many requests with padding, and one
            with torch.inference_mode():
                encoded = model.encode(torch.tensor(rows), torch.tensor(lengths))
            found.append(beam_search(model, encoded, trie, num_beams=20, k=20))
    for eager, program in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(program.scores_BK, eager.scores_BK)
        torch.testing.assert_close(program.items_BK, eager.items_BK)


def test_flat_logits_are_those_of_the_levels() -> None:
    model = build_model()
    item, history = 22, [3, 17]
    codes, offsets = codes_of(model)[item], torch.tensor(model.config.level_offsets)
    tokens = torch.cat([torch.tensor([1]), (codes + offsets)[:2]])[None]
    logits = model(input_ids=torch.tensor([history]) + 1, decoder_input_ids=tokens).logits
    log_probs = logits.log_softmax(-1)[0, torch.arange(3), codes + offsets]
    torch.testing.assert_close(log_probs, log_probabilities_by_steps(model, history, item))
    assert torch.isneginf(logits[0, 0, : offsets[0]]).all()
    assert torch.isneginf(logits[0, 0, offsets[1] :]).all()


def test_auxiliary_head_leaves_the_plain_path_alone() -> None:
    plain, with_head = build_model(), build_model(item_head_weight=1.0)
    with_head.load_state_dict(plain.state_dict(), strict=False)
    inputs = {"input_ids": torch.tensor([[4, 18]]), "target_items": torch.tensor([[22]])}
    torch.testing.assert_close(with_head(**inputs).level_losses_L, plain(**inputs).level_losses_L)


@pytest.mark.parametrize("changes", [{}, {"context": "lazy", "num_kv_heads": 1}, {"num_experts": 4}])
@pytest.mark.parametrize("loader", [OneRec, AutoModel, AutoModelForSeq2SeqLM])
def test_weights_come_back_with_their_table(tmp_path: Path, loader: Any, changes: dict[str, object]) -> None:
    model = build_model(**changes)
    model.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, OneRec)
    np.testing.assert_array_equal(loaded.encoder.code_rows_NL, model.encoder.code_rows_NL)
    assert loaded.config.table_hash == "hash-of-the-table"
    torch.testing.assert_close(
        log_probabilities_by_steps(loaded, [1, 2], 3), log_probabilities_by_steps(model, [1, 2], 3)
    )


def test_table_of_another_shape_is_refused() -> None:
    model = build_model()
    with pytest.raises(ArtifactError, match=r"found shape \(39, 3\), expected \(40, 3\)"):
        model.set_codes(np.zeros((39, 3), dtype=np.int32), "x")
    with pytest.raises(ArtifactError, match="outside its level"):
        model.set_codes(np.full((40, 3), 5), "x")


def test_the_loss_of_prefixes_is_added_in_training_only() -> None:
    inputs = {"input_ids": torch.tensor([[4, 18]]), "target_items": torch.tensor([[22]])}
    plain = build_model(dropout=0.0).train()
    aware = build_model(dropout=0.0, prefix_loss_weight=0.3, prefix_loss_sharpness=2.0).train()
    outputs = aware(**inputs)
    expected = plain(**inputs).loss + 0.3 * prefix_loss(outputs.level_losses_L, 2.0)
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(aware.eval()(**inputs).loss, plain.eval()(**inputs).loss)


def test_an_items_vector_has_its_pieces_too() -> None:
    model = build_model(num_pieces=5)
    items = torch.tensor([0, 7, 39])
    without = model.encoder.embedding(items, model.encoder.code_rows_NL)
    offsets = np.zeros(NUM_ITEMS + 1, dtype=np.int64)
    offsets[1:] = 2  # item 0 has two pieces, the others none until the last
    offsets[-1] = 3
    model.set_pieces(np.array([4, 1, 0]), offsets)
    table = model.encoder.embedding.pieces.weight
    expected = without + torch.stack([table[4] + table[1], torch.zeros(16), table[0]])
    torch.testing.assert_close(model.encoder.embedding(items, model.encoder.code_rows_NL), expected)
    with pytest.raises(ArtifactError, match="found 2 items and pieces up to 5, expected 40 items and pieces below 5"):
        model.set_pieces(np.array([5, 1, 0]), np.array([0, 2, 3]))


def test_pieces_travel_with_the_weights(tmp_path: Path) -> None:
    model = build_model(num_pieces=5)
    model.set_pieces(np.arange(NUM_ITEMS) % 5, np.arange(NUM_ITEMS + 1))
    model.save_pretrained(tmp_path)
    loaded = OneRec.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.encoder.item_vectors(), model.encoder.item_vectors())


def test_item_dropout_hides_items_in_training_only() -> None:
    model = build_model(item_dropout=0.999)
    items, lengths = torch.tensor([[3, 9, 7]]), torch.tensor([3])
    quiet = model.encoder.encode(items, lengths)
    torch.testing.assert_close(quiet, model.encoder.encode(items, lengths))
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(quiet, model.encoder.encode(items, lengths))


def test_soft_targets_sum_items_below_each_code() -> None:
    """Four items in the tree {0: {0, 1}, 1: {1}}, of which (0, 1) holds two."""
    teacher = CodeTeacher(np.array([[1, 1], [0, 1], [0, 0], [0, 1]]), [2, 2], torch.device("cpu"))
    lesson = teacher.lesson(torch.tensor([[0.4, 0.3, 0.2, 0.1]])[:, teacher.order_N])
    torch.testing.assert_close(lesson.code_targets(torch.tensor([2]), 0), torch.tensor([[0.6, 0.4]]))
    given_first_0 = lesson.code_targets(torch.tensor([3]), 1)
    torch.testing.assert_close(given_first_0, torch.tensor([[0.2 / 0.6, 0.4 / 0.6]]))
    torch.testing.assert_close(lesson.code_targets(torch.tensor([0]), 1), torch.tensor([[0.0, 1.0]]))


def test_paths_are_drawn_from_the_distribution_over_items() -> None:
    rng = np.random.default_rng(0)
    teacher = CodeTeacher(rng.integers(0, 4, (30, 3)), [4, 4, 4], torch.device("cpu"))
    probs_N = torch.from_numpy(rng.dirichlet(np.full(30, 0.3))).float()
    torch.manual_seed(0)
    lesson = teacher.lesson(probs_N[teacher.order_N].repeat(20_000, 1))
    shares_N = torch.bincount(lesson.sample_items(), minlength=30) / 20_000
    torch.testing.assert_close(shares_N, probs_N, atol=0.015, rtol=0)  # four standard deviations of a share of a half


def test_path_sampling_trains_the_codes_of_drawn_items_in_training_only() -> None:
    inputs = {"input_ids": torch.tensor([[4, 18]]), "target_items": torch.tensor([[22]])}
    shape = {"item_head_weight": 1.0, "dropout": 0.0}
    true = build_model(**shape).train()
    drawn = build_model(**shape, path_sampling=1.0).train()
    torch.manual_seed(0)
    outputs = drawn(**inputs)
    torch.manual_seed(0)
    batch = drawn.target_pass(drawn.encoder(inputs["input_ids"]), inputs["target_items"])
    states_MD = batch.newest_states[batch.has_target]
    _, lessons = item_head_losses(batch, drawn.item_head, states_MD, path_sampling=1.0)
    item = lessons.paths_M
    assert item.item() != 22
    expected = true(input_ids=inputs["input_ids"], target_items=item[None])
    torch.testing.assert_close(outputs.level_losses_L, expected.level_losses_L)
    torch.testing.assert_close(outputs.item_loss, true(**inputs).item_loss)
    torch.testing.assert_close(drawn.eval()(**inputs).loss, true.eval()(**inputs).loss)


def test_distillation_mixes_hard_and_soft_targets_in_training_only() -> None:
    inputs = {"input_ids": torch.tensor([[4, 18]]), "target_items": torch.tensor([[22]])}
    hard = build_model(item_head_weight=1.0, dropout=0.0).train()
    mixed = build_model(item_head_weight=1.0, dropout=0.0, item_distillation=0.3).train()
    soft = build_model(item_head_weight=1.0, dropout=0.0, item_distillation=1.0).train()
    expected = 0.7 * hard(**inputs).level_losses_L + 0.3 * soft(**inputs).level_losses_L
    torch.testing.assert_close(mixed(**inputs).level_losses_L, expected)
    torch.testing.assert_close(mixed.eval()(**inputs).level_losses_L, hard.eval()(**inputs).level_losses_L)
