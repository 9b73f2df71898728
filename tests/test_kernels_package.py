"""The folder `kernels/` must not pass for the hub's package `kernels`, which transformers probes for by that name."""

import importlib.metadata
from pathlib import Path

import pytest
import torch
import transformers.utils.import_utils as probes
from transformers import T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

import kernels
from tests.processes import started


def test_transformers_does_not_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the project's own version and for versions it may come to have, one of them inside the window that
    transformers asks of the hub's package; then once with no bounds, as other releases of transformers may ask."""
    assert not hasattr(kernels, "get_kernel"), "another package `kernels` comes first"
    assert not hasattr(kernels, "__version__"), "transformers would take it for the hub package's version"
    real = importlib.metadata.version
    for version in (real("onerec"), probes.KERNELS_MIN_VERSION, "1.0.0", "99.0"):
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name, own=version: own if name == "onerec" else real(name)
        )
        probes.is_kernels_available.cache_clear()
        assert probes.is_kernels_available() is False
        assert probes.is_kernels_available("0", "1000") is False
    probes.is_kernels_available.cache_clear()


def test_transformers_works_beside_it(tmp_path: Path) -> None:
    """In a process of its own, which has the folder on its path as `python train.py` has."""
    with started(save_load_and_train, tmp_path, log=tmp_path / "log") as process:
        process.join()
        assert process.exitcode == 0, (tmp_path / "log").read_text()


def save_load_and_train(folder: Path) -> None:
    import transformers.integrations.hub_kernels  # noqa: F401 what saving and loading ask for kernels

    config = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    tokens = torch.tensor([[1, 2, 3]])
    model.save_pretrained(folder)
    again = T5ForConditionalGeneration.from_pretrained(folder).eval()
    torch.testing.assert_close(again(input_ids=tokens, labels=tokens).loss, model(input_ids=tokens, labels=tokens).loss)
    arguments = TrainingArguments(str(folder), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    rows = [{"input_ids": tokens[0], "labels": tokens[0]}] * 2
    Trainer(model, arguments, train_dataset=rows).train()


def test_no_distribution_declares_the_folder() -> None:
    """Else its version would answer for `kernels`; see `packages.find.include` in pyproject.toml."""
    assert "kernels" not in importlib.metadata.packages_distributions()
