"""Resumable downloads of public files: a file appears under its name only when it is whole.

Bytes go to `NAME.part`, guarded by a lock; a cut download continues where it stopped if the server honours ranges and
still serves the same version, told by the validator (ETag or Last-Modified) kept in `NAME.part.version`.
"""

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from onerec.errors import ArtifactError, DataError
from tokenizer.artifacts import explained_os_errors

_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 60.0
_NUM_ATTEMPTS = 6
_PAUSE_S = 1.0  # before the second attempt; doubled before each one after it
_PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONNECTION_ERRORS = (ConnectionError, TimeoutError, http.client.HTTPException)


@dataclass(frozen=True)
class RemoteFile:
    """A file at its official address; `checksum` is `md5:…` or `sha256:…`, and only where the publisher gives one."""

    name: str
    url: str
    checksum: str | None = None


class _CutError(Exception):
    """The connection ended early, or the server asked to come back later: worth another attempt."""


class _RangeError(Exception):
    """HTTP 416: there is nothing after the part's last byte; holds the response's Content-Range."""


def cache_folder() -> Path:
    """Where downloads are kept: `$ONEREC_CACHE`, else `.cache/onerec` under the project root."""
    chosen = os.environ.get("ONEREC_CACHE")
    return Path(chosen).expanduser() if chosen else Path(__file__).resolve().parents[3] / ".cache" / "onerec"


def download(file: RemoteFile, folder: Path) -> Path:
    """Bring `file` into `folder` and return its path; a file already there was whole when it got its name.

    Raises:
        DataError: offline, an HTTP error, a connection that keeps breaking, a wrong checksum, a length nobody tells.
        ArtifactError: the disk is full, the folder cannot be written, or another process downloads the same file.
    """
    path = folder / file.name
    if path.is_file():
        return path
    with explained_os_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked_part(path) as part:
            if path.is_file():  # another process finished it between our look and our lock
                return path
            _fill(part, file, path)
            if file.checksum is not None:
                _verify_part(path, file)
            part.flush()
            os.fsync(part.fileno())
            os.replace(_part_path(path), path)
            _version_path(path).unlink(missing_ok=True)
    return path


def verify_checksum(path: Path, checksum: str) -> None:
    """Compare a file's bytes with `md5:…` or `sha256:…`.

    Raises:
        DataError: they differ; the message shows both.
    """
    algorithm, _, expected = checksum.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as stream, _progress(f"Checking {path.name}", path.stat().st_size) as bar:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != expected:
        raise DataError(
            f"{path}: found {algorithm} {digest.hexdigest()}, expected {expected} as published. "
            "The file is damaged or is another version; remove it and get it again."
        )


def _part_path(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _version_path(path: Path) -> Path:
    return path.with_name(path.name + ".part.version")


@contextlib.contextmanager
def _locked_part(path: Path) -> Iterator[IO[bytes]]:
    with _part_path(path).open("ab") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(
                f"{_part_path(path)}: another process is downloading this file. Wait for it, then run again."
            ) from None
        try:
            yield part
        finally:
            if part.seek(0, os.SEEK_END) == 0:
                _part_path(path).unlink(missing_ok=True)
                _version_path(path).unlink(missing_ok=True)


def _fill(part: IO[bytes], file: RemoteFile, path: Path) -> None:
    """Attempt after attempt, append to `part` until it is whole."""
    cause = ""
    for attempt in range(_NUM_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S * 2 ** (attempt - 1))
        try:
            _receive(part, file, path)
            return
        except _CutError as error:
            cause = str(error)
    held = part.seek(0, os.SEEK_END)
    raise DataError(
        f"{file.url}: gave up after {_NUM_ATTEMPTS} attempts ({cause}). {held:,} bytes are kept in "
        f"{_part_path(path)}; run again to continue, or give a file of your own with --from PATH."
    )


def _receive(part: IO[bytes], file: RemoteFile, path: Path) -> None:
    """One request: continue `part` where that is safe, start it afresh where it is not."""
    held = _resumable_bytes(part, file, path)
    try:
        response = _open(file, _range_headers(held, path))
    except _RangeError as error:
        if str(error) != f"bytes */{held}":
            part.truncate(0)
            raise _CutError("the file on the server is another version than the part held") from None
        return  # the part is whole already
    with response:
        if response.status != 206:  # the range was not honoured, or the file has changed since
            held = 0
            part.truncate(0)
        total = _total_bytes(response, held)
        if total is None and file.checksum is None:
            raise DataError(
                f"{file.url}: the server tells no length and no checksum is published, so a whole file cannot be told "
                "from a half one. Download it with a browser and give it with --from PATH."
            )
        _require_space(path, (total or held) - held)
        _version_path(path).write_text(_version_of(response), encoding="utf-8")
        _copy(response, part, file.name, held, total)


def _resumable_bytes(part: IO[bytes], file: RemoteFile, path: Path) -> int:
    """Bytes worth keeping: a part without validator may mix two versions, which only a checksum would notice."""
    held = part.seek(0, os.SEEK_END)
    if held and file.checksum is None and not _stored_version(path):
        part.truncate(0)
        return 0
    return held


def _stored_version(path: Path) -> str:
    version = _version_path(path)
    return version.read_text(encoding="utf-8") if version.is_file() else ""


def _range_headers(held: int, path: Path) -> dict[str, str]:
    if not held:
        return {}
    version = _stored_version(path)
    return {"Range": f"bytes={held}-"} | ({"If-Range": version} if version else {})


def _open(file: RemoteFile, headers: dict[str, str]) -> http.client.HTTPResponse:
    request = urllib.request.Request(
        file.url, headers={"User-Agent": "onerec", "Accept-Encoding": "identity", **headers}
    )
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and headers:
            raise _RangeError(error.headers.get("Content-Range", "")) from None
        if error.code in _PASSING_STATUSES:
            raise _CutError(f"HTTP {error.code} {error.reason}") from None
        raise DataError(
            f"{file.url}: found HTTP {error.code} {error.reason}, expected the file. It may have moved: "
            "look at the official page, download it, and give it with --from PATH."
        ) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, (ConnectionResetError, TimeoutError)):
            raise _CutError(str(error.reason)) from None
        raise DataError(
            f"{file.url}: cannot reach the server ({error.reason}). Check the connection, or download the file "
            "elsewhere and give it with --from PATH."
        ) from None
    except _CONNECTION_ERRORS as error:
        raise _CutError(str(error) or type(error).__name__) from None


def _total_bytes(response: http.client.HTTPResponse, held: int) -> int | None:
    """Length of the whole file; None where the server does not tell."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != held:
            raise _CutError(f"asked for bytes from {held}, got {response.headers.get('Content-Range')!r}")
        return int(match[2])
    length = response.headers.get("Content-Length")
    return int(length) if length is not None else None


def _version_of(response: http.client.HTTPResponse) -> str:
    """The validator to send as If-Range: a strong ETag, else the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _require_space(path: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if num_bytes > free:
        raise ArtifactError(
            f"{path}: {num_bytes:,} bytes are to come, but the disk has {free:,} free. "
            "Free some space, or set ONEREC_CACHE to a folder on another disk."
        )


def _copy(response: http.client.HTTPResponse, part: IO[bytes], name: str, held: int, total: int | None) -> None:
    with _progress(f"Downloading {name}", total, initial=held) as bar:
        try:
            while block := response.read(_BLOCK_BYTES):
                part.write(block)
                held += len(block)
                bar.update(len(block))
        except _CONNECTION_ERRORS as error:
            raise _CutError(str(error) or type(error).__name__) from None
        finally:
            part.flush()
    if total is not None and held != total:
        raise _CutError(f"the connection ended after {held:,} of {total:,} bytes")


def _verify_part(path: Path, file: RemoteFile) -> None:
    """Check the finished part; a wrong one is removed, since continuing it would never make it right."""
    assert file.checksum is not None
    try:
        verify_checksum(_part_path(path), file.checksum)
    except DataError as error:
        _part_path(path).unlink()
        _version_path(path).unlink(missing_ok=True)
        raise DataError(f"{file.url}: {error}") from None


def _progress(description: str, total: int | None, initial: int = 0) -> "tqdm[Any]":
    return tqdm(desc=description, total=total, initial=initial, unit="B", unit_scale=True, unit_divisor=1024, delay=0.5)
