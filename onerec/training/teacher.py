"""A bigger model of a finished run, frozen, whose distributions train auxiliary heads of the model in training."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onerec.errors import ArtifactError
from onerec.model.adversarial import LogProbs
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from onerec.model.target_loss import Teach
from tokenizer.artifacts import read_manifest, require_same_hash

_HEADS = "teacher_heads."


class Teacher:
    """Reads the batches of a training.

    Args:
        content_hash: of the artefact that the model comes from.
    """

    def __init__(self, model: OneRec, content_hash: str) -> None:
        self._model = model.eval().requires_grad_(False)
        self.content_hash = content_hash

    @classmethod
    def load(cls, path: Path, student: OneRec) -> "Teacher":
        """Load the model of a run, of its `pretrain` folder or of a bundle.

        Raises:
            ArtifactError: no finished artefact, or a model that cannot teach this one: of another ID table, or of
                other inputs.
        """
        folder = path / "pretrain" if (path / "pretrain").is_dir() else path
        manifest = read_manifest(folder, "bundle" if (folder / "table").is_dir() else "pretrain")
        model: OneRec = OneRec.from_pretrained(folder)
        require_same_hash(
            f"{path}: the teacher was trained on another ID table",
            model.config.table_hash,
            student.config.table_hash,
            "Give a teacher of the same data and tokenizer.",
        )
        _require_same_inputs(path, model.config, student.config)
        return cls(model, manifest.content_hash)

    def to(self, device: torch.device) -> None:
        """Move the model to where the batches are."""
        self._model.to(device=device)

    def reading(self, inputs: dict[str, Any]) -> Teach:
        """What it says of a batch, once it is told which codes the decoder reads."""

        def teach(paths_BP: Tensor) -> LogProbs:
            pathways = None if self._model.encoder.pathways is None else inputs["pathways"]
            with torch.no_grad():
                encoded = self._model.encoder(inputs["input_ids"], pathways=pathways)
                batch = self._model.target_pass(encoded, inputs["target_items"], pathways=pathways)
                return batch.distributions(paths_BP)

        return teach


def save_without_teaching(model: OneRec, folder: Path) -> None:
    """Write a model with `save_pretrained`, without the heads that a teacher trains: nothing reads them afterwards."""
    if model.teacher_heads is None:
        model.save_pretrained(folder)
        return
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith(_HEADS)}
    model.save_pretrained(folder, state_dict=weights)
    config = copy.deepcopy(model.config)
    config.teacher_weight = 0.0
    config.save_pretrained(folder)


def _require_same_inputs(path: Path, teacher: OneRecConfig, student: OneRecConfig) -> None:
    """Refuse a teacher that cannot read what the student reads."""
    checks = {
        "context": (teacher.context, student.context, teacher.many_targets == student.many_targets),
        "session_items": (
            teacher.session_items,
            student.session_items,
            teacher.session_items == student.session_items,
        ),
        "pathways": ("others", "none or the same", teacher.pathways in (None, student.pathways)),
        "max_history_items": (
            teacher.max_history_items,
            f"at least {student.max_history_items}",
            teacher.max_history_items >= student.max_history_items,
        ),
    }
    wrong = [
        f"{key}: found {found}, expected {expected}" for key, (found, expected, fits) in checks.items() if not fits
    ]
    if wrong:
        raise ArtifactError(
            f"{path}: the teacher cannot read what the model in training reads ({'; '.join(wrong)}). "
            "Train either as the other is, or leave training.teacher out."
        )
