"""Scores against the sampler, the model's own forward pass, and the laws that log-probabilities obey."""

import numpy as np
import pytest
import torch

from onerec.decoding.sampling import sample_distinct_items, sample_items
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from rl.scoring import score_codes, score_items

HISTORIES_BS = torch.tensor([[1, 2, 3], [4, 0, 0]])
LENGTHS_B = torch.tensor([3, 1])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scores_are_what_the_sampler_reports(toy, temperature: float) -> None:
    context = toy.model.encode(HISTORIES_BS, LENGTHS_B)
    generator = torch.Generator().manual_seed(0)
    drawn = sample_items(toy.model, context, toy.trie, 30, generator, temperature)
    found = score_items(toy.model, context, drawn.items_BG, toy.trie, temperature).log_probs_BG
    torch.testing.assert_close(found, drawn.log_probs_BG, rtol=0, atol=1e-4)
    plain = score_codes(toy.model, context, drawn.codes_BGL).log_probs_BG
    torch.testing.assert_close(plain, drawn.plain_log_probs_BG, rtol=0, atol=1e-4)
    free = sample_items(toy.model, context, toy.trie, 30, generator, temperature, constrained=False)
    found = score_codes(toy.model, context, free.codes_BGL, temperature).log_probs_BG
    torch.testing.assert_close(found, free.log_probs_BG, rtol=0, atol=1e-4)


@pytest.mark.parametrize("context", ["bidirectional", "lazy"])
def test_every_kind_of_context_is_scored_as_it_is_decoded(toy, context: str) -> None:
    torch.manual_seed(0)
    config = OneRecConfig(toy.trie.codes_per_level, 14, d_model=16, d_ff=32, max_history_items=4, context=context)
    model = OneRec(config).eval()
    model.set_codes(toy.codes_NL, "hash")
    encoded = model.encode(HISTORIES_BS, LENGTHS_B)
    drawn = sample_items(model, encoded, toy.trie, 20, torch.Generator().manual_seed(0))
    found = score_items(model, encoded, drawn.items_BG, toy.trie).log_probs_BG
    torch.testing.assert_close(found, drawn.log_probs_BG, rtol=0, atol=1e-4)


def test_exclusions_are_scored_as_they_were_drawn(toy) -> None:
    context = toy.model.encode(HISTORIES_BS, LENGTHS_B)
    excluded = [np.array([0, 3, 7, 8]), np.array([5])]
    generator = torch.Generator().manual_seed(0)
    drawn = sample_distinct_items(toy.model, context, toy.trie, 10, generator, 0.8, excluded)
    found = score_items(toy.model, context, drawn.items_BG, toy.trie, 0.8, excluded).log_probs_BG
    torch.testing.assert_close(found, drawn.log_probs_BG, rtol=0, atol=1e-4)


def test_the_constrained_distribution_sums_to_one_and_its_mean_score_gradient_is_zero(toy) -> None:
    context = toy.model.encode(HISTORIES_BS, LENGTHS_B)
    every_item_BG = torch.arange(len(toy.codes_NL)).expand(2, -1)
    scores = score_items(toy.model, context, every_item_BG, toy.trie)
    probs_BG = scores.log_probs_BG.detach().exp()
    torch.testing.assert_close(probs_BG.sum(dim=1), torch.ones(2))
    # The entropies along a path, averaged over items, are the entropy of the items.
    entropy_B = -(probs_BG * scores.log_probs_BG.detach()).sum(dim=1)
    torch.testing.assert_close((probs_BG * scores.entropies_BG).sum(dim=1), entropy_B)
    (probs_BG * scores.log_probs_BG).sum().backward()
    gradients = [parameter.grad for parameter in toy.model.decoder.parameters() if parameter.grad is not None]
    assert gradients
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-3  # a single item: about 1


def test_one_items_gradient_is_not_zero_and_reaches_the_context(toy) -> None:
    context = toy.model.encode(HISTORIES_BS, LENGTHS_B)
    score_items(toy.model, context, torch.tensor([[2], [9]]), toy.trie).log_probs_BG.sum().backward()
    assert toy.model.encoder.embedding.codes.weight.grad.abs().sum() > 0
    assert all(torch.isfinite(p.grad).all() for p in toy.model.parameters() if p.grad is not None)


def test_codes_come_from_the_table_in_the_model(toy) -> None:
    items_BG = torch.tensor([[0, 5, 13]])
    assert toy.model.codes_of(items_BG).tolist() == [toy.codes_NL[[0, 5, 13]].tolist()]
