"""Raw files as their publishers pack them: members of folders, zips and tars, read chunk by chunk into typed columns.

Every chunk goes through a fast typed parse first. Only a chunk that fails it is read again line by line, to say which
lines are wrong and why; the whole file is read before the error is raised, so that it can tell how many there are.
"""

import contextlib
import csv
import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, Any

import polars as pl
from tqdm import tqdm

from onerec.errors import DataError

CHUNK_BYTES = 64 << 20
_NUM_SHOWN = 3
Columns = Mapping[str, type[pl.DataType]]

_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, tarfile.ReadError)


@dataclass(frozen=True)
class Member:
    """One file inside a folder or archive, open for reading; gzip is taken off."""

    name: str
    stream: IO[bytes]
    num_bytes: int  # as stored: compressed where it is compressed
    tell: Callable[[], int]  # how many of them have been read


@dataclass(frozen=True)
class BadLine:
    """One line that breaks its file's form; lines count from 1."""

    line: int
    reason: str


@dataclass(frozen=True)
class Layout:
    """How the lines of a delimited text file read.

    columns: name -> type of those that are kept; without a header line these are all columns, in order.
    required: columns that may not be empty.
    """

    columns: Columns
    required: Sequence[str]
    separator: str = ","
    header: bool = True
    quoted: bool = False
    encoding: str = "utf-8"
    chunk_bytes: int = CHUNK_BYTES


def members(path: Path, *patterns: str) -> Iterator[Member]:
    """Files below a folder, or inside a zip or tar, whose base name fits a pattern; a tar is passed over once.

    Raises:
        DataError: nothing there, or a damaged archive.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Give the place of the downloaded data (data.path or --from).")
    try:
        if path.is_dir():
            yield from _plain_members(matching_files(path, *patterns))
        elif zipfile.is_zipfile(path):
            yield from _zip_members(path, patterns)
        elif path.name.endswith((".tar.gz", ".tgz", ".tar")):
            yield from _tar_members(path, patterns)
        elif path.suffix == ".zip":
            raise DataError(f"{path}: not a whole zip file. Remove it and get it again.")
        elif _fits(path.name, patterns):
            yield from _plain_members([path])
    except _DAMAGED as error:
        raise DataError(f"{path}: damaged or cut short ({error}). Remove it and get it again.") from error


def matching_files(path: Path, *patterns: str) -> list[Path]:
    """The file itself, or the files below a folder whose name fits a pattern, sorted."""
    if path.is_file():
        return [path]
    return [file for file in sorted(path.rglob("*")) if file.is_file() and _fits(file.name, patterns)]


def require_members(found: dict[str, Any], patterns: Sequence[str], path: Path) -> None:
    """Refuse a set of which a file is missing.

    Raises:
        DataError: a pattern that no found name fits.
    """
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in found):
            names = ", ".join(sorted(found)) or "none of the files of this set"
            raise DataError(f"{path}: found {names}, expected also {pattern}. Give the whole official download.")


def read_delimited(member: Member, layout: Layout, bad_lines: list[BadLine] | None = None) -> pl.DataFrame:
    """Read a delimited file; malformed lines end in an error, or are left out and appended to `bad_lines` if given.

    Raises:
        DataError: malformed lines (file, first line numbers, reasons, count), or a header without an expected column.
    """
    found: list[BadLine] = []
    frames = [pl.DataFrame(schema=layout.columns)]
    schema = {} if layout.header else layout.columns
    for first_line, raw in line_chunks(member, layout.chunk_bytes):
        chunk = raw.replace(b"::", b"\t") if layout.separator == "::" else raw
        if not schema:
            header, _, chunk = chunk.partition(b"\n")
            schema = _header_schema(header, layout, member.name)
            first_line += 1
        if chunk:
            frames.append(_parse_delimited(chunk, first_line, schema, layout, found))
    if bad_lines is None:
        refuse_bad_lines(member.name, found)
    else:
        bad_lines.extend(found)
    return pl.concat(frames, rechunk=False)


def read_json_lines(member: Member, columns: Columns) -> pl.DataFrame:
    """Read these keys of a file with one JSON object a line; all of them are required.

    Raises:
        DataError: malformed lines: file, first line numbers, reasons and count.
    """
    found: list[BadLine] = []
    frames = [pl.DataFrame(schema=columns)]
    for first_line, chunk in line_chunks(member):
        frame, reason = _parse_json(chunk, columns)
        if reason is not None or frame.height != chunk.count(b"\n"):
            good, bad_lines = _split_bad_json(chunk, first_line, columns)
            found += bad_lines
            frame, _ = _parse_json(good, columns)
        frames.append(frame)
    refuse_bad_lines(member.name, found)
    return pl.concat(frames, rechunk=False)


def line_chunks(member: Member, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, bytes]]:
    """Chunks of whole lines, each ending in a newline, with the number of their first line, counted from 1."""
    line, rest = 1, b""
    description = f"Reading {member.name}"
    with tqdm(desc=description, total=member.num_bytes, unit="B", unit_scale=True, unit_divisor=1024, delay=1) as bar:
        while block := _read_block(member, chunk_bytes):
            bar.update(member.tell() - bar.n)
            whole, newline, tail = block.rpartition(b"\n")
            if not newline:
                rest += block
                continue
            chunk, rest = rest + whole + newline, tail
            yield line, _without_mark(chunk, line)
            line += chunk.count(b"\n")
    if rest:
        yield line, _without_mark(rest + b"\n", line)


def refuse_bad_lines(name: str, bad_lines: Sequence[BadLine]) -> None:
    """Raise if there are any.

    Raises:
        DataError: the first bad_lines by line, and how many there are.
    """
    if bad_lines:
        shown = "; ".join(f"line {bad_line.line}: {bad_line.reason}" for bad_line in bad_lines[:_NUM_SHOWN])
        raise DataError(
            f"{name}: {len(bad_lines):,} malformed lines, first {shown}. Expected the official raw form; "
            "the file is damaged or is another release. Get it again from the official address."
        )


def _read_block(member: Member, num_bytes: int) -> bytes:
    try:
        return member.stream.read(num_bytes)
    except _DAMAGED as error:
        raise DataError(f"{member.name}: damaged or cut short ({error}). Remove it and get it again.") from error


def _without_mark(chunk: bytes, line: int) -> bytes:
    text = chunk.removeprefix(b"\xef\xbb\xbf") if line == 1 else chunk
    return text.replace(b"\r\n", b"\n")


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return not name.startswith(".") and any(fnmatch(name, pattern) for pattern in patterns)


def _plain_members(files: Sequence[Path]) -> Iterator[Member]:
    for file in files:
        with contextlib.ExitStack() as opened:
            raw = opened.enter_context(file.open("rb"))
            stream: Any = opened.enter_context(gzip.open(raw)) if file.suffix == ".gz" else raw
            yield Member(file.name, stream, file.stat().st_size, raw.tell)


def _zip_members(path: Path, patterns: Sequence[str]) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = PurePosixPath(info.filename).name
            if _fits(name, patterns) and not info.is_dir():
                with archive.open(info) as stream:
                    yield Member(name, stream, info.file_size, stream.tell)


def _tar_members(path: Path, patterns: Sequence[str]) -> Iterator[Member]:
    with tarfile.open(path, "r|*") as archive:  # a stream: seeking back in a gzip would decompress it all again
        for info in archive:
            name = PurePosixPath(info.name).name
            stream = archive.extractfile(info) if info.isfile() and _fits(name, patterns) else None
            if stream is not None:
                yield Member(name, stream, info.size, stream.tell)


def _header_schema(header: bytes, layout: Layout, name: str) -> Columns:
    """Types of all columns of the file, in its order; those nobody asked for are text."""
    names = header.decode(layout.encoding).split("\t" if layout.separator == "::" else layout.separator)
    missing = [column for column in layout.columns if column not in names]
    if missing:
        raise DataError(
            f"{name}: the header has {', '.join(names)}; expected also {', '.join(missing)}. Is it another file?"
        )
    return {column: layout.columns.get(column, pl.String) for column in names}


def _parse_delimited(
    chunk: bytes, first_line: int, schema: Columns, layout: Layout, found: list[BadLine]
) -> pl.DataFrame:
    """The chunk's kept columns. What the fast parse refuses, and what it cannot tell from a short line, is looked at
    line by line; offending lines are left out and added to `found`."""
    try:
        frame = _parse_fast(chunk, schema, layout)
    except (pl.exceptions.PolarsError, UnicodeDecodeError):
        frame = None
    *_, last = schema
    if frame is not None and not any(frame[name].null_count() for name in {*layout.required, last}):
        return frame.select(*layout.columns)
    good, bad_lines = _split_bad_lines(chunk, first_line, schema, layout)
    found += bad_lines
    return _parse_fast(good, schema, layout).select(*layout.columns) if good else pl.DataFrame(schema=layout.columns)


def _parse_fast(chunk: bytes, schema: Columns, layout: Layout) -> pl.DataFrame:
    if layout.encoding != "utf-8":
        chunk = chunk.decode(layout.encoding).encode("utf-8")
    return pl.read_csv(
        chunk,
        has_header=False,
        schema=schema,
        separator="\t" if layout.separator == "::" else layout.separator,
        quote_char='"' if layout.quoted else None,
    )


def _split_bad_lines(chunk: bytes, first_line: int, schema: Columns, layout: Layout) -> tuple[bytes, list[BadLine]]:
    """The good records of a chunk, as bytes again, and the bad_lines of the others."""
    lines = chunk.split(b"\n")[:-1]
    good: list[bytes] = []
    bad_lines: list[BadLine] = []
    for start, stop in _records(lines, layout.quoted):
        record = b"\n".join(lines[start:stop])
        if not record.strip():
            continue
        reason = _reason(record, schema, layout)
        if reason is None:
            good.append(record)
        else:
            bad_lines.append(BadLine(first_line + start, reason))
    return b"".join(record + b"\n" for record in good), bad_lines


def _records(lines: Sequence[bytes], quoted: bool) -> Iterator[tuple[int, int]]:
    """Ranges of lines that make one record: a quoted field may hold line ends, so quotes must pair up."""
    start = 0
    while start < len(lines):
        stop = start + 1
        num_quotes = lines[start].count(b'"') if quoted else 0
        while num_quotes % 2 and stop < len(lines):
            num_quotes += lines[stop].count(b'"')
            stop += 1
        if num_quotes % 2:  # never closed: blame this line alone and go on with the next
            stop = start + 1
        yield start, stop
        start = stop


def _reason(record: bytes, schema: Columns, layout: Layout) -> str | None:
    """What is wrong with a record, or None."""
    try:
        text = record.decode(layout.encoding)
    except UnicodeDecodeError as error:
        return f"not {layout.encoding} text ({error.reason})"
    fields = _fields(text, layout)
    if len(fields) != len(schema):
        return f"found {len(fields)} fields, expected {len(schema)}"
    for (name, kind), value in zip(schema.items(), fields, strict=True):
        if not value:
            if name in layout.required:
                return f"{name} is empty"
        elif kind is not pl.String and not _is_number(value, kind):
            return f"{name} is {value!r}, expected {'a whole' if kind.is_integer() else 'a'} number"
    return None


def _fields(text: str, layout: Layout) -> list[str]:
    separator = "\t" if layout.separator == "::" else layout.separator
    if not layout.quoted:
        return text.split(separator)
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])


def _is_number(value: str, kind: type[pl.DataType]) -> bool:
    return pl.Series([value]).str.strip_chars().cast(kind, strict=False).null_count() == 0


def _parse_json(lines: bytes, columns: Columns) -> tuple[pl.DataFrame, str | None]:
    """These keys of JSON lines, and what is wrong with them if anything is."""
    if not lines:
        return pl.DataFrame(schema=columns), None
    try:
        frame = pl.read_ndjson(io.BytesIO(lines), schema=columns)
    except pl.exceptions.PolarsError as error:
        return pl.DataFrame(schema=columns), str(error).splitlines()[0]
    missing = [name for name in columns if frame.height == 0 or frame[name].null_count()]
    return frame, f"no {', '.join(missing)}" if missing else None


def _split_bad_json(chunk: bytes, first_line: int, columns: Columns) -> tuple[bytes, list[BadLine]]:
    good: list[bytes] = []
    bad_lines: list[BadLine] = []
    for line, record in enumerate(chunk.split(b"\n")[:-1], first_line):
        if not record.strip():
            continue
        _, reason = _parse_json(record + b"\n", columns)
        if reason is None:
            good.append(record + b"\n")
        else:
            bad_lines.append(BadLine(line, reason))
    return b"".join(good), bad_lines
