"""What a run's artefacts are made from: which are finished, and which belong to others than the run holds now."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from onerec.training.pretraining import ARTIFACT_KIND as PRETRAIN_KIND
from tokenizer.artifacts import MANIFEST_NAME, read_manifest, require_same_hash

LISTS = "evaluations/lists"
BEAM_ALONE = "onerec-beam"
# Folder of an artefact -> what it is made from; evaluations of other recommenders are made from the data alone.
_SOURCES = {
    "data": (),
    "tokenizer": ("data",),
    "pretrain": ("data", "table"),
    "evaluations/onerec": ("data", "pretrain"),
    LISTS: ("data", "pretrain"),
    f"evaluations/{BEAM_ALONE}": ("data", "pretrain"),
    "evaluations/tiger": ("data", "table"),
    "bundle": ("data", "tokenizer", "table", "pretrain", "reward"),
}


@dataclass(frozen=True)
class RunArtefacts:
    """The artefacts in a run's folder, each named by its path there."""

    folder: Path
    console: Console

    @property
    def reward(self) -> Path | None:
        """Folder of the run's reward model, where `rl` has trained one."""
        return self.folder / "reward" if self.exists("reward") else None

    def exists(self, name: str) -> bool:
        """Whether it has been finished, whatever it was made from."""
        return (self.folder / name / MANIFEST_NAME).is_file()

    def is_finished(self, name: str, kind: str) -> bool:
        """Whether it is there to be kept, which is told.

        Raises:
            ArtifactError: it is damaged, or made from others than the run holds now.
        """
        if not self.exists(name):
            return False
        read_manifest(self.folder / name, kind)
        self.require_inputs(name, kind)
        self.console.print(f"{name}: found the finished artefact, kept")
        return True

    def require_inputs(self, name: str, kind: str) -> None:
        """Refuse an artefact made from others than the run holds now, such as data that have been prepared anew.

        Raises:
            ArtifactError: the hashes differ.
        """
        folder = self.folder / name
        made_from = read_manifest(folder, kind, verify_files=False).inputs
        for source, expected in self.inputs(name).items():
            if source in made_from:  # artefacts of older versions name fewer of them
                what = f"{folder}: its {source}"
                require_same_hash(what, made_from[source], expected, f"Delete {folder} and run again.")

    def inputs(self, name: str) -> dict[str, str]:
        """Content hashes, as the run's artefacts are now, of what this one is made from."""
        sources = _SOURCES.get(name, ("data",))
        return {source: self._content_hash(source) for source in sources if source != "reward" or self.reward}

    def _content_hash(self, source: str) -> str:
        if source == "table":
            manifest = read_manifest(self.folder / "tokenizer", "tokenizer", verify_files=False)
            return str(manifest.details["table_hash"])
        kind = PRETRAIN_KIND if source == "pretrain" else source
        return read_manifest(self.folder / source, kind, verify_files=False).content_hash
