"""Public releases: where a set is published, on what terms, and how its files are found or fetched."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from onerec.data.settings import DataSettings
from onerec.data.sources.download import RemoteFile, cache_folder, download, verify_checksum
from onerec.data.sources.reading import matching_files
from onerec.data.tables import Part, Provenance
from onerec.errors import ConfigError, suggest_nearest
from tokenizer.artifacts import hash_file


@dataclass(frozen=True)
class Release:
    """One downloadable part of a public set; `folder` is its place within the cache."""

    title: str
    page: str
    licence: str
    citation: str
    folder: str
    files: tuple[RemoteFile, ...]

    def fetch(self, cache: Path | None) -> list[Path]:
        """Download what is not in the cache yet, showing the terms first.

        Raises:
            DataError, ArtifactError: as `download`.
        """
        folder = (cache or cache_folder()) / self.folder
        if not all((folder / file.name).is_file() for file in self.files):
            self.show_terms()
        return [download(file, folder) for file in self.files]

    def locate(self, settings: DataSettings) -> list[Path]:
        """The files or the folder that the user names (`data.path`), else the downloaded files.

        Raises:
            DataError: a named file is not the published one by its checksum; else as `fetch`.
        """
        given = settings.path
        if given is None:
            return self.fetch(settings.cache)
        inside = [given / file.name for file in self.files]
        paths = inside if all(path.is_file() for path in inside) else [given]
        checksums = {file.name: file.checksum for file in self.files}
        for path in paths:
            if path.is_file() and (checksum := checksums.get(path.name)) is not None:
                verify_checksum(path, checksum)
        return paths

    def provenance(self, paths: list[Path], *patterns: str) -> Provenance:
        """What was read, with the SHA-256 of every archive or, in a folder, of every file that fits a pattern."""
        files = [file for path in paths for file in matching_files(path, *patterns)]
        return Provenance(self.title, self.licence, self.citation, {file.name: hash_file(file) for file in files})

    def show_terms(self) -> None:
        """Print the licence and what to cite, on standard error."""
        print(f"{self.title} ({self.page})\n  Licence: {self.licence}\n  Cite: {self.citation}", file=sys.stderr)


def choose_variant(source: str, variants: tuple[str, ...], chosen: str | None, default: str | None = None) -> str:
    """The variant a config asks for.

    Raises:
        ConfigError: none given where none is the default, or an unknown one; the message names the nearest.
    """
    variant = chosen or default
    if variant in variants:
        return variant
    hint = suggest_nearest(variant or "", variants, cutoff=0.6)
    raise ConfigError(f"data.variant of {source}: found {variant!r}, expected one of {', '.join(variants)}.{hint}")


def parts_of(frames: Mapping[str, pl.DataFrame], names: Sequence[str]) -> tuple[Part, ...]:
    """The shares of these files in a table that they make in this order."""
    return tuple(Part(name, frames[name].height) for name in names)
