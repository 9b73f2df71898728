"""What repetition adds to logits, by hand; histories with repeats count each item once."""

import numpy as np
import torch

from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from onerec.model.repeats import first_occurrences

CODES_NL = np.array([[0, 0], [0, 1], [0, 1], [1, 1]])  # items 1 and 2 share their ID


def make_model() -> OneRec:
    shape = {"d_model": 8, "num_heads": 2, "d_ff": 16, "repeat_bias": True, "item_head_weight": 1.0}
    model = OneRec(OneRecConfig(codes_per_level=[2, 3], num_items=4, max_history_items=8, **shape)).eval()
    model.set_codes(CODES_NL, "hash")
    with torch.no_grad():
        for head in model.code_heads.levels:
            head.weight.zero_()  # what is left is the repeats' part
        model.code_heads.repeats.weights_L.copy_(torch.tensor([-0.3, 0.5]))
        model.item_head.query.weight.zero_()
        model.item_head.repeats.weight.fill_(-0.2)
    return model


def test_first_occurrences_by_hand() -> None:
    items_BS = torch.tensor([[5, 3, 5, 5], [1, 2, 2, 1]])
    assert first_occurrences(items_BS).tolist() == [[True, True, False, False], [True, True, False, False]]


def test_logits_of_codes_gain_the_share_of_items_seen_below() -> None:
    model = make_model()
    context = model.encode(torch.tensor([[1, 3, 1, 0]]), torch.tensor([3]))  # items 1 and 3; 0 is padding
    cache = model.new_cache()
    first_K = model.decode_step(None, 0, context, cache)[0, 0]
    # One of the three items below code 0, the only one below code 1; a weight of 1 stands for ten nats.
    torch.testing.assert_close(first_K, torch.tensor([-3.0 / 3, -3.0]).log_softmax(-1))
    second_WK = model.decode_step(torch.tensor([[0, 1]]), 1, context, cache)[0]
    torch.testing.assert_close(second_WK[0], torch.tensor([0.0, 5.0 / 2, 0.0]).log_softmax(-1))
    torch.testing.assert_close(second_WK[1], torch.tensor([0.0, 5.0, 0.0]).log_softmax(-1))


def test_each_target_counts_the_items_before_it() -> None:
    model = make_model()
    # Targets 3, 0, 1 after the histories (), (3), (3, 0).
    output = model(input_ids=torch.tensor([[4, 1]]), target_items=torch.tensor([[3, 0, 1]]))
    logits_MN = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -2.0], [-2.0, 0.0, 0.0, -2.0]])
    expected = -logits_MN.log_softmax(-1)[torch.arange(3), torch.tensor([3, 0, 1])].mean()
    torch.testing.assert_close(output.item_loss, expected)


def test_the_bias_starts_at_nothing() -> None:
    shape = {"d_model": 8, "num_heads": 2, "d_ff": 16, "max_history_items": 8}
    torch.manual_seed(0)
    plain = OneRec(OneRecConfig(codes_per_level=[2, 3], num_items=4, **shape)).eval()
    torch.manual_seed(0)
    with_bias = OneRec(OneRecConfig(codes_per_level=[2, 3], num_items=4, repeat_bias=True, **shape)).eval()
    found = []
    for model in (plain, with_bias):
        model.set_codes(CODES_NL, "hash")
        context = model.encode(torch.tensor([[1, 3]]), torch.tensor([2]))
        found.append(model.decode_step(None, 0, context, model.new_cache()))
    torch.testing.assert_close(found[0], found[1])
