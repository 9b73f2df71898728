"""The folder `kernels/` must not pass for the hub's package `kernels`, which transformers probes for by that name."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The probes, for the project's own version and for versions it may come to have, one of them inside the window that
# transformers asks of the hub's package; then once with no bounds, as other releases of transformers may ask.
PROBE = """
import importlib.metadata
import kernels
import transformers.utils.import_utils as probes
assert not hasattr(kernels, "get_kernel"), "another package `kernels` comes first"
assert not hasattr(kernels, "__version__"), "transformers would take it for the hub package's version"
real = importlib.metadata.version
for version in (real("onerec"), probes.KERNELS_MIN_VERSION, "1.0.0", "99.0"):
    importlib.metadata.version = lambda name: version if name == "onerec" else real(name)
    probes.is_kernels_available.cache_clear()
    assert probes.is_kernels_available() is False
    assert probes.is_kernels_available("0", "1000") is False
"""
USE = """
import tempfile
import torch
import transformers.integrations.hub_kernels
from transformers import T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments
config = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
model = T5ForConditionalGeneration(config).eval()
tokens = torch.tensor([[1, 2, 3]])
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    again = T5ForConditionalGeneration.from_pretrained(folder).eval()
    torch.testing.assert_close(again(input_ids=tokens, labels=tokens).loss, model(input_ids=tokens, labels=tokens).loss)
    arguments = TrainingArguments(folder, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    rows = [{"input_ids": tokens[0], "labels": tokens[0]}] * 2
    Trainer(model, arguments, train_dataset=rows).train()
"""


def test_transformers_works_beside_the_folder() -> None:
    """In a process of its own, with the folder importable as it is for `python train.py`."""
    done = subprocess.run([sys.executable, "-c", PROBE + USE], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_no_distribution_declares_the_folder() -> None:
    """Else its version would answer for `kernels`; see `packages.find.include` in pyproject.toml."""
    assert "kernels" not in importlib.metadata.packages_distributions()
