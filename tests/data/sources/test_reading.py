"""Raw files: archives of every kind, chunks of whole lines, and malformed lines told by number, reason and count."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onerec.data.sources.reading import (
    BadLine,
    Layout,
    Member,
    line_chunks,
    matching_files,
    members,
    read_delimited,
    read_json_lines,
    require_members,
)
from onerec.errors import DataError

LAYOUT = Layout({"id": pl.Int64, "name": pl.String, "price": pl.Float64}, ("id",))


def member(content: bytes, name: str = "table.csv") -> Member:
    stream = io.BytesIO(content)
    return Member(name, stream, len(content), stream.tell)


def test_members_of_folder_zip_and_tar_are_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "inner"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_bytes(b"1\n")
    (folder / "b.csv.gz").write_bytes(gzip.compress(b"2\n"))
    (folder / "._a.csv").write_bytes(b"resource fork")
    (folder / "notes.txt").write_bytes(b"3\n")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(folder, "set/inner/")
        archive.write(folder / "a.csv", "set/inner/a.csv")
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(folder / "a.csv", "set/inner/a.csv")
        archive.add(folder / "notes.txt", "set/inner/notes.txt")

    def contents(path: Path) -> dict[str, bytes]:
        return {found.name: found.stream.read() for found in members(path, "a.csv", "*.csv.gz")}

    assert contents(tmp_path / "set") == {"a.csv": b"1\n", "b.csv.gz": b"2\n"}
    assert contents(tmp_path / "set.zip") == contents(tmp_path / "set.tar.gz") == {"a.csv": b"1\n"}
    assert contents(folder / "a.csv") == {"a.csv": b"1\n"}
    assert contents(folder / "notes.txt") == {}
    assert [file.name for file in matching_files(tmp_path / "set", "*.csv")] == ["a.csv"]


def test_a_missing_file_and_a_missing_member_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        list(members(tmp_path / "nothing.zip", "*"))
    with pytest.raises(DataError, match=r"found a\.csv, expected also b_\*\.csv"):
        require_members({"a.csv": 1}, ("a.csv", "b_*.csv"), tmp_path)


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz", "set.csv.gz"])
def test_a_cut_archive_is_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = bytes(range(256)) * 4000
    if name == "set.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("set.csv", content)
    elif name == "set.tar.gz":
        with tarfile.open(path, "w:gz") as tar:
            info = tarfile.TarInfo("set.csv")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    else:
        path.write_bytes(gzip.compress(content))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"(damaged or cut short|not a whole zip file).*get it again"):
        sum(len(list(line_chunks(found))) for found in members(path, "set.csv*"))


@given(
    st.lists(st.binary(max_size=12).filter(lambda line: not set(line) & set(b"\r\n\xef")), max_size=20),
    st.integers(1, 40),
)
def test_chunks_hold_whole_lines_with_their_numbers(lines: list[bytes], chunk_bytes: int) -> None:
    content = b"\n".join(lines)
    seen: dict[int, bytes] = {}
    for first_line, chunk in line_chunks(member(content), chunk_bytes):
        assert chunk.endswith(b"\n")
        seen |= dict(enumerate(chunk[:-1].split(b"\n"), first_line))
    expected = content.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert seen == dict(enumerate(expected, 1))


def test_windows_line_ends_and_the_byte_order_mark_are_taken_off() -> None:
    frame = read_delimited(member(b"\xef\xbb\xbfid,name,price\r\n1,a,2.5\r\n"), LAYOUT)
    assert frame.rows() == [(1, "a", 2.5)]


def test_columns_may_come_in_another_order_with_others_between() -> None:
    frame = read_delimited(member(b"price,more,id,name\n2.5,x,1,a\n"), LAYOUT)
    assert frame.columns == ["id", "name", "price"]
    assert frame.rows() == [(1, "a", 2.5)]
    with pytest.raises(DataError, match=r"table\.csv: the header has id, name; expected also price"):
        read_delimited(member(b"id,name\n1,a\n"), LAYOUT)


def test_quoted_fields_keep_separators_quotes_and_line_ends() -> None:
    layout = Layout(LAYOUT.columns, LAYOUT.required, quoted=True)
    frame = read_delimited(member(b'id,name,price\n1,"a, ""b""\nc",\n2,d,1\n'), layout)
    assert frame.rows() == [(1, 'a, "b"\nc', None), (2, "d", 1.0)]


@pytest.mark.parametrize("chunk_bytes", [7, 1 << 20])
def test_malformed_lines_are_told_by_number_reason_and_count(chunk_bytes: int) -> None:
    layout = Layout(LAYOUT.columns, LAYOUT.required, chunk_bytes=chunk_bytes)
    content = b"id,name,price\n1,a,2\nx,b,3\n2,c\n3,d,4,5\n\n,e,6\n7,f,cheap\n8,\xff,9\n9,g,\n"
    with pytest.raises(DataError) as caught:
        read_delimited(member(content), layout)
    message = str(caught.value)
    assert message.startswith("table.csv: 6 malformed lines, first line 3: id is 'x', expected a whole number; ")
    assert "line 4: found 2 fields, expected 3; line 5: found 4 fields, expected 3." in message
    kept: list[BadLine] = []
    assert read_delimited(member(content), layout, kept).rows() == [(1, "a", 2.0), (9, "g", None)]
    assert [(bad_line.line, bad_line.reason) for bad_line in kept][3:] == [
        (7, "id is empty"),
        (8, "price is 'cheap', expected a number"),
        (9, "not utf-8 text (invalid start byte)"),
    ]


def test_an_unclosed_quote_costs_one_line() -> None:
    kept: list[BadLine] = []
    layout = Layout(LAYOUT.columns, LAYOUT.required, quoted=True)
    frame = read_delimited(member(b'id,name,price\n1,"a,2\n2,b,3\n'), layout, kept)
    assert frame.rows() == [(2, "b", 3.0)]
    assert [bad_line.line for bad_line in kept] == [2]


def test_json_lines_keep_the_keys_asked_for() -> None:
    columns = {"id": pl.String, "rating": pl.Float32}
    content = b'{"id": "a", "rating": 4, "text": "\\u00e9", "style": {"x": [1]}}\n\n{"rating": 5.0, "id": "b"}'
    assert read_json_lines(member(content), columns).rows() == [("a", 4.0), ("b", 5.0)]
    assert read_json_lines(member(b""), columns).rows() == []


def test_malformed_json_lines_are_told_by_number_reason_and_count() -> None:
    content = b'{"id": "a", "rating": 4}\n{"id": "b"}\n{"id": "c", "rat\n{"id": "d", "rating": "five"}\n[1]\n'
    with pytest.raises(DataError, match=r"reviews: 4 malformed lines, first line 2: no rating; line 3: .*; line 4: "):
        read_json_lines(member(content, "reviews"), {"id": pl.String, "rating": pl.Float32})
