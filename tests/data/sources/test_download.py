"""The downloader against a server of our own: cut connections, ranges honoured or not, changed and damaged files."""

import errno
import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from onerec.data.sources import download as downloads
from onerec.data.sources.download import RemoteFile, cache_folder, download, verify_checksum
from onerec.errors import ArtifactError, DataError

BODY = bytes(range(256)) * 40  # 10,240 bytes
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()


@dataclass
class Site:
    """What the server serves and how it misbehaves."""

    body: bytes = BODY
    etag: str | None = '"v1"'
    ranges: bool = True
    tells_length: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes sent before each of the first connections is cut
    statuses: list[int] = field(default_factory=list)  # statuses of the first responses, before the file
    asked: list[str | None] = field(default_factory=list)  # the Range header of each request
    url: str = ""


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site = self.site
        site.asked.append(self.headers.get("Range"))
        if site.statuses:
            self.send_error(site.statuses.pop(0))
            return
        start = self._start()
        if start >= len(site.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(site.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        rest = site.body[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(site.body) - 1}/{len(site.body)}")
        if site.tells_length:
            self.send_header("Content-Length", str(len(rest)))
        if site.etag:
            self.send_header("ETag", site.etag)
        self.end_headers()
        self.wfile.write(rest[: site.cut_after.pop(0)] if site.cut_after else rest)

    def _start(self) -> int:
        wanted = self.headers.get("Range")
        same_version = self.headers.get("If-Range") in (None, self.site.etag)
        return int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.site.ranges and same_version else 0

    def log_message(self, *_: object) -> None:
        """Keep the test's output quiet."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(downloads, "_PAUSE_S", 0.0)
    site = Site()
    handler = type("SiteHandler", (Handler,), {"site": site})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    site.url = f"http://127.0.0.1:{server.server_port}/set.zip"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def remote(site: Site, checksum: str | None = MD5) -> RemoteFile:
    return RemoteFile("set.zip", site.url, checksum)


def assert_nothing_left(folder: Path) -> None:
    assert list(folder.iterdir()) == []


def test_a_whole_file_arrives_alone_and_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    path = download(remote(site), tmp_path / "new")
    assert path.read_bytes() == BODY
    assert [file.name for file in path.parent.iterdir()] == ["set.zip"]
    assert download(remote(site), tmp_path / "new") == path
    assert site.asked == [None]


@pytest.mark.parametrize("checksum", [MD5, None])
def test_a_cut_connection_continues_where_it_stopped(site: Site, tmp_path: Path, checksum: str | None) -> None:
    site.cut_after = [1000, 2000]
    assert download(remote(site, checksum), tmp_path).read_bytes() == BODY
    assert site.asked == [None, "bytes=1000-", "bytes=3000-"]


def test_a_later_run_continues_the_part_of_an_earlier_one(site: Site, tmp_path: Path) -> None:
    site.cut_after = [100] * 6
    with pytest.raises(DataError, match=r"gave up after 6 attempts .*600 bytes are kept in .*--from PATH"):
        download(remote(site, None), tmp_path)
    assert (tmp_path / "set.zip.part").read_bytes() == BODY[:600]
    assert not (tmp_path / "set.zip").exists()
    assert download(remote(site, None), tmp_path).read_bytes() == BODY
    assert site.asked[-1] == "bytes=600-"
    assert [file.name for file in tmp_path.iterdir()] == ["set.zip"]


def test_a_server_without_ranges_sends_all_again(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    site.cut_after = [1000]
    assert download(remote(site), tmp_path).read_bytes() == BODY
    assert site.asked == [None, "bytes=1000-"]


def test_a_file_that_changed_meanwhile_starts_afresh(site: Site, tmp_path: Path) -> None:
    site.cut_after = [100] * 6
    with pytest.raises(DataError, match="gave up"):
        download(remote(site, None), tmp_path)
    site.body, site.etag = BODY[::-1], '"v2"'
    assert download(remote(site, None), tmp_path).read_bytes() == BODY[::-1]


def test_a_part_of_unknown_version_is_kept_only_where_a_checksum_judges_the_whole(site: Site, tmp_path: Path) -> None:
    (tmp_path / "set.zip.part").write_bytes(BODY[:500])
    assert download(remote(site), tmp_path).read_bytes() == BODY
    (tmp_path / "set.zip").unlink()
    (tmp_path / "set.zip.part").write_bytes(BODY[:500])
    assert download(remote(site, None), tmp_path).read_bytes() == BODY
    assert site.asked == ["bytes=500-", None]


def test_a_part_that_is_already_whole_is_accepted(site: Site, tmp_path: Path) -> None:
    (tmp_path / "set.zip.part").write_bytes(BODY)
    assert download(remote(site), tmp_path).read_bytes() == BODY
    assert site.asked == [f"bytes={len(BODY)}-"]


def test_a_part_longer_than_the_file_is_thrown_away(site: Site, tmp_path: Path) -> None:
    (tmp_path / "set.zip.part").write_bytes(BODY + b"more")
    assert download(remote(site), tmp_path).read_bytes() == BODY
    assert site.asked == [f"bytes={len(BODY) + 4}-", None]


def test_a_wrong_checksum_shows_both_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    wrong = "sha256:" + "0" * 64
    found = hashlib.sha256(BODY).hexdigest()
    with pytest.raises(DataError, match=rf"{found}.*{'0' * 64}"):
        download(remote(site, wrong), tmp_path)
    assert_nothing_left(tmp_path)


def test_passing_errors_are_tried_again_and_lasting_ones_are_told(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429]
    assert download(remote(site), tmp_path / "a").read_bytes() == BODY
    site.statuses = [404]
    with pytest.raises(DataError, match=r"HTTP 404 Not Found.*--from PATH"):
        download(remote(site), tmp_path / "b")
    assert_nothing_left(tmp_path / "b")


def test_a_length_nobody_tells_is_refused_without_a_checksum(site: Site, tmp_path: Path) -> None:
    site.tells_length = False
    with pytest.raises(DataError, match="tells no length and no checksum"):
        download(remote(site, None), tmp_path)
    assert_nothing_left(tmp_path)
    assert download(remote(site), tmp_path).read_bytes() == BODY


def test_offline_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    file = RemoteFile("set.zip", f"http://127.0.0.1:{port}/set.zip")
    with pytest.raises(DataError, match=r"cannot reach the server .*--from PATH"):
        download(file, tmp_path)
    assert_nothing_left(tmp_path)


def test_a_disk_too_small_is_told_before_the_first_byte(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ArtifactError, match=r"10,240 bytes are to come, but the disk has 1,000 free"):
        download(remote(site), tmp_path)
    assert_nothing_left(tmp_path)


def test_a_disk_filling_up_meanwhile_is_an_artifact_error(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "_copy", fill_up)
    with pytest.raises(ArtifactError, match="the disk is full"):
        download(remote(site), tmp_path)
    assert not (tmp_path / "set.zip").exists()


def test_a_second_download_of_the_same_file_is_refused(site: Site, tmp_path: Path) -> None:
    with (
        downloads._locked_part(tmp_path / "set.zip"),
        pytest.raises(ArtifactError, match="another process is downloading"),
    ):
        download(remote(site), tmp_path)


def test_verify_checksum_reads_both_algorithms(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    verify_checksum(path, "md5:900150983cd24fb0d6963f7d28e17f72")  # RFC 1321, appendix A.5
    verify_checksum(path, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")  # FIPS 180
    with pytest.raises(DataError, match="another version"):
        verify_checksum(path, "md5:" + "0" * 32)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONEREC_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("ONEREC_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "onerec")
    assert (cache_folder().parents[1] / "pyproject.toml").is_file()
