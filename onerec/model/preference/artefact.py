"""The stored reward model: weights and config as transformers saves them, tied to a catalogue by its hash."""

from pathlib import Path

from onerec.model.preference.network import PreferenceModel
from tokenizer.artifacts import read_manifest, require_same_hash
from tokenizer.table import SemanticIdTable

KIND = "reward"


def load_reward_model(folder: Path, table: SemanticIdTable) -> PreferenceModel:
    """Load a finished reward model in evaluation mode.

    Any run's will do whose catalogue is the same: the model holds what it knows of the items itself.

    Raises:
        ArtifactError: the folder is no finished reward model, or its items are others.
    """
    read_manifest(folder, KIND)
    model: PreferenceModel = PreferenceModel.from_pretrained(folder)
    require_same_hash(
        f"{folder}: it is a reward model of another catalogue",
        model.config.catalogue_hash,
        table.catalogue_hash,
        "Train it on the items of this run (--stage reward).",
    )
    return model.eval()
