import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tokenizer.behaviour.training as training
from tokenizer.behaviour.training import Captions, caption_loss, contrastive_loss, learning_rate_share, train_qformer
from tokenizer.config import BehaviourSettings, FrontTrainingSettings
from tokenizer.errors import ArtifactError
from tokenizer.settings import build_settings


def make(**changes: Any) -> BehaviourSettings:
    chosen = {"steps": 40, "batch_size": 16, "caption_items": 8, "caption_words": 4, "save_steps": 10, **changes}
    tree = {"weight": 1, "num_queries": 2, "num_layers": 1, "width": 16, "num_heads": 2, "training": chosen}
    return build_settings(BehaviourSettings, tree, "test")


def test_contrast_worked_by_hand() -> None:
    """Temperature 1/2; two pairs have the second item 1, so that neither is the other's negative."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    vectors = torch.stack([torch.stack([a, a]), torch.stack([b, a]), torch.stack([a, b])])
    pairs = torch.tensor([[0, 1], [2, 1], [4, 3]])
    # Scores: row 0 [2, (2), 0], row 1 [(0), 0, 2], row 2 [2, 2, 0]; in brackets what the same second item masks.
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(2)), math.log(1 + 2 * math.exp(2))]
    torch.testing.assert_close(contrastive_loss(vectors, pairs, 0.5), torch.tensor(sum(expected) / 3))
    pairs = torch.tensor([[3, 1], [2, 1], [4, 3]])  # the third pair's second item is the first one's own
    expected[0] = 0.0
    torch.testing.assert_close(contrastive_loss(vectors, pairs, 0.5), torch.tensor(sum(expected) / 3))


def test_captions_are_the_items_words(make_tokens: Any) -> None:
    """Items of 3, 0 and 9 tokens, the first of each a mark: words 101 102 | none | 104 105 106 100."""
    captions = Captions(make_tokens([3, 0, 9]), max_words=4)
    assert captions.vocabulary_V.tolist() == [100, 101, 102, 103, 104, 105, 106]
    words, real = captions.batch(np.array([0, 1, 2]))
    assert words.tolist() == [[1, 2, 0, 0], [0, 0, 0, 0], [4, 5, 6, 0]]
    assert real.sum(dim=1).tolist() == [2, 0, 4]
    logits = torch.zeros(3, 4, 7)
    logits[0, 0, 1] = math.log(6)  # right with 6 of 12
    expected = (math.log(2) + 5 * math.log(7)) / 6
    torch.testing.assert_close(caption_loss(logits, words, real), torch.tensor(expected))


def test_warm_up_and_fall() -> None:
    chosen = FrontTrainingSettings(steps=10, warmup_steps=4)
    shares = [learning_rate_share(step, chosen) for step in range(10)]
    np.testing.assert_allclose(shares, [1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_pairs_come_together_and_words_are_kept(make_tokens: Any) -> None:
    tokens = make_tokens([3 + item % 3 for item in range(24)])
    pairs = np.stack([np.arange(24), (np.arange(24) + 12) % 24], axis=1)
    qformer, records = train_qformer(tokens, pairs, make(steps=80, learning_rate=0.01), 0, "cpu", None)
    assert [record.step for record in records] == list(range(10, 90, 10))
    assert records[-1].contrastive < 0.4 * records[0].contrastive
    assert records[-1].caption < 0.5 * records[0].caption
    vectors = torch.nn.functional.normalize(qformer(tokens.batch(np.arange(24))).flatten(1), dim=1)
    cosines = vectors @ vectors.T - 2 * torch.eye(24)
    assert (cosines.argmax(dim=1).numpy() == pairs[:, 1]).mean() > 0.7  # of 23 others
    assert not any(parameter.requires_grad for parameter in qformer.parameters())


def test_without_captions_there_is_no_decoder(make_tokens: Any) -> None:
    tokens, pairs = make_tokens([2, 3]), np.array([[0, 1]])
    _, records = train_qformer(tokens, pairs, make(steps=2, caption_weight=0), 0, "cpu", None)
    assert records[-1].caption == 0


def test_a_stopped_training_ends_in_the_same_weights(
    make_tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, pairs = make_tokens([2, 4, 3, 5]), np.array([[0, 1], [2, 3], [1, 0]])
    whole, records = train_qformer(tokens, pairs, make(), 0, "cpu", tmp_path / "whole.pt")
    step = training._step

    def stop_at_25(state: Any, *rest: Any) -> np.ndarray:
        if state.step == 25:
            raise KeyboardInterrupt
        return step(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", stop_at_25)
        with pytest.raises(KeyboardInterrupt):
            train_qformer(tokens, pairs, make(), 0, "cpu", tmp_path / "stopped.pt")
    resumed, again = train_qformer(tokens, pairs, make(), 0, "cpu", tmp_path / "stopped.pt")
    assert again == records
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    monkeypatch.setattr(training, "_step", lambda *_: pytest.fail("trained again"))
    kept, _ = train_qformer(tokens, pairs, make(), 0, "cpu", tmp_path / "whole.pt")
    torch.testing.assert_close(kept.state_dict(), whole.state_dict(), rtol=0, atol=0)
    (tmp_path / "whole.pt").write_bytes(b"cut short")
    with pytest.raises(ArtifactError, match="Delete it and run again"):
        train_qformer(tokens, pairs, make(), 0, "cpu", tmp_path / "whole.pt")
