"""Artefacts on disk: folders under one manifest, written so that a killed run leaves the last good one whole."""

import contextlib
import errno
import glob
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from tokenizer.errors import ArtifactError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
_FULL_DISK_BYTES = 2**14  # less is left free on a disk that could not take a write
_RETIRED = ".old"  # ending of a folder on its way out
_RECORDED_PACKAGES = ("torch", "transformers", "numpy", "polars", "faiss-cpu", "accelerate", "safetensors")


class Manifest(BaseModel):
    """What an artefact is, what it was made from, and the hash of every file in it."""

    format_version: int
    kind: str
    inputs: dict[str, str]  # name of an artefact read -> its content hash
    config_hash: str
    files: dict[str, str]  # relative path -> SHA-256
    packages: dict[str, str]
    code_revision: str
    details: dict[str, Any]

    @property
    def content_hash(self) -> str:
        """One hash over all files: the artefact's identity."""
        return hash_text(json.dumps(self.files, sort_keys=True))


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed over `path`.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    with explained_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with explained_os_errors(path):
            yield temporary
            temporary.chmod(0o666 & ~_current_umask())
            sync_to_disk(temporary)
            os.replace(temporary, path)
            sync_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`.

    Raises:
        ArtifactError: the disk is full, the folder cannot be written, or `path` is a file.
    """
    with explained_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    retired = temporary.with_name(temporary.name + _RETIRED)
    try:
        with explained_os_errors(path):
            restore_folder(path)
            if path.exists() and not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            yield temporary
            temporary.chmod(0o777 & ~_current_umask())
            for file in sorted(temporary.rglob("*")):
                sync_to_disk(file)
            sync_to_disk(temporary)
            _take_place(temporary, path, retired)
            sync_to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not path.exists() and retired.exists():
            os.replace(retired, path)
        shutil.rmtree(retired, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Put back what `atomic_folder` had moved aside, where it was killed before the new folder took the place."""
    if not path.exists():
        # Nothing but a kill between two renames leaves one without `path`, so there is never a choice.
        for retired in path.parent.glob(f".{glob.escape(path.name)}.*{_RETIRED}"):
            os.replace(retired, path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_manifest(
    folder: Path, kind: str, inputs: dict[str, str], config_hash: str, details: dict[str, Any] | None = None
) -> Manifest:
    """Hash every file under `folder` and write its manifest; call last, before the folder takes its place."""
    files = {
        str(file.relative_to(folder)): hash_file(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST_NAME
    }
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        kind=kind,
        inputs=inputs,
        config_hash=config_hash,
        files=files,
        packages=package_versions(),
        code_revision=code_revision(),
        details=details or {},
    )
    write_json(folder / MANIFEST_NAME, manifest.model_dump())
    return manifest


def read_manifest(folder: Path, kind: str, verify_files: bool = True) -> Manifest:
    """Read the manifest of `folder` and check its kind, version and (unless told not to) every file's hash.

    Raises:
        ArtifactError: no manifest, another kind or version, a missing or changed file.
    """
    restore_folder(folder)
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ArtifactError(
            f"{folder}: found no {MANIFEST_NAME}, expected a finished {kind!r} artefact. Run its stage."
        )
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ArtifactError(
            f"{path}: damaged manifest ({error.error_count()} problems). Run its stage again."
        ) from None
    if manifest.format_version != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder}: found format version {manifest.format_version}, expected {FORMAT_VERSION}. Run its stage again."
        )
    if manifest.kind != kind:
        raise ArtifactError(f"{folder}: found an artefact of kind {manifest.kind!r}, expected {kind!r}.")
    if verify_files:
        _verify_files(folder, manifest)
    return manifest


def require_same_hash(what: str, found: str, expected: str, remedy: str) -> None:
    """Refuse a pair that does not belong together, showing both hashes.

    Raises:
        ArtifactError: the hashes differ.
    """
    if found != expected:
        raise ArtifactError(f"{what}: found hash {found}, expected {expected}. {remedy}")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_text(text: str) -> str:
    """SHA-256 of a string in UTF-8, as hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def hash_arrays(*arrays: np.ndarray) -> str:
    """SHA-256 over dtypes, shapes and contents, as hex."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def hash_settings(settings: BaseModel | Sequence[BaseModel]) -> str:
    """SHA-256 of one or several groups of settings, independent of key order."""
    groups = [settings] if isinstance(settings, BaseModel) else list(settings)
    return hash_text(json.dumps([group.model_dump(mode="json") for group in groups], sort_keys=True))


def package_versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    versions = {}
    for name in _RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def code_revision() -> str:
    """The checkout's git revision, with `+changes` where the tree differs from it; `unknown` outside git."""
    root = Path(__file__).resolve().parent.parent
    try:
        run = ["git", "-C", str(root)]
        revision = subprocess.run(
            [*run, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run([*run, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + ("+changes" if changed.strip() else "")


def _verify_files(folder: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise ArtifactError(f"{folder}: the file {name} of its manifest is missing. Run its stage again.")
        require_same_hash(str(file), hash_file(file), expected, "The file was changed or damaged; run its stage again.")


@contextlib.contextmanager
def explained_os_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors that a user can mend into sentences.

    Raises:
        ArtifactError: the disk is full, or the place of `path` may not be written.
    """
    try:
        yield
    except Exception as error:
        if _says_disk_full(error, path):
            raise ArtifactError(
                f"{path}: the disk is full. Free some space and run again; nothing was lost."
            ) from error
        if isinstance(error, OSError) and error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EEXIST,
        ):
            raise ArtifactError(
                f"{path}: cannot write here ({error.strerror}). Choose a folder you may write."
            ) from error
        raise


def _says_disk_full(error: Exception, path: Path) -> bool:
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
        return True  # polars and safetensors pass the system's words on, without its number
    # numpy and torch tell of a short write, without its cause.
    short_write = code is None and isinstance(error, OSError | RuntimeError)
    return short_write and path.parent.is_dir() and shutil.disk_usage(path.parent).free < _FULL_DISK_BYTES


def _take_place(temporary: Path, path: Path, retired: Path) -> None:
    """Rename `path` aside and `temporary` to `path`; again where a reader has put the old one back in between."""
    while True:
        if path.exists():
            os.replace(path, retired)
        try:
            os.replace(temporary, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return


def sync_to_disk(path: Path) -> None:
    """Wait until a file's contents, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
