import pytest
import torch

from tokenizer.behaviour.networks import CaptionDecoder, QFormer


@pytest.fixture
def qformer() -> QFormer:
    torch.manual_seed(0)
    return QFormer({"text": 6, "image": 5}, width=8, num_queries=3, num_layers=2, num_heads=2).eval()


def test_padding_and_missing_kinds_change_nothing(qformer: QFormer) -> None:
    """Two texts of 4 and 2 tokens, one image of 3 for the first: as each would be read alone."""
    text, image = torch.randn(2, 4, 6), torch.randn(2, 3, 5)
    real_text = torch.tensor([[True] * 4, [True, True, False, False]])
    real_image = torch.tensor([[True] * 3, [False] * 3])
    together = qformer({"text": (text, real_text), "image": (image, real_image)})
    assert together.shape == (2, 3, 8)
    first = qformer({"text": (text[:1], real_text[:1]), "image": (image[:1], real_image[:1])})
    second = qformer({"text": (text[1:, :2], real_text[1:, :2])})
    torch.testing.assert_close(together, torch.cat([first, second]))
    assert not torch.allclose(together[0, 0], together[0, 1])  # the queries read different things


def test_the_layers_start_different(qformer: QFormer) -> None:
    first, second = (block.linear1.weight for block in qformer.blocks)
    assert not torch.allclose(first, second)


def test_captions_see_the_item_and_the_words_before() -> None:
    torch.manual_seed(0)
    decoder = CaptionDecoder(num_words=11, max_words=5, width=8, num_layers=2, num_heads=2)
    words, item = torch.randint(11, (2, 5)), torch.randn(2, 3, 8)
    logits = decoder(words, item)
    assert logits.shape == (2, 5, 11)
    changed = words.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 11
    after = decoder(changed, item)
    torch.testing.assert_close(after[:, :4], logits[:, :4])
    assert not torch.allclose(after[:, 4], logits[:, 4])
    assert not torch.allclose(decoder(words, item + 1)[:, 0], logits[:, 0])
