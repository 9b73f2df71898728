"""The wish is kept; "auto" follows the device."""

import pytest
import torch

from onerec.model.precision import choose_precision


@pytest.mark.parametrize(("amx", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_follows_the_cpu(monkeypatch: pytest.MonkeyPatch, amx: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    assert choose_precision("auto") == expected
    assert choose_precision("float32") == "float32"
    assert choose_precision("bfloat16") == "bfloat16"


def test_auto_without_a_word_on_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert choose_precision("auto") == "float32"
