"""Releases: what is fetched, what is taken from a path, and the names of variants."""

import hashlib
from pathlib import Path

import pytest

from onerec.data.settings import DataSettings
from onerec.data.sources import available_sources
from onerec.data.sources import release as releases
from onerec.data.sources.download import RemoteFile
from onerec.data.sources.release import Release, choose_variant
from onerec.errors import ConfigError, DataError

CONTENT = b"whole"
FILES = (
    RemoteFile("a.zip", "https://example.org/a.zip", "md5:" + hashlib.md5(CONTENT).hexdigest()),
    RemoteFile("b.zip", "https://example.org/b.zip"),
)
RELEASE = Release("A set", "https://example.org", "CC0", "Anon. 2020", "a_set", FILES)


def test_what_is_missing_is_downloaded_after_the_terms_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(file: RemoteFile, folder: Path) -> Path:
        folder.mkdir(exist_ok=True, parents=True)
        (folder / file.name).write_bytes(CONTENT)
        return folder / file.name

    monkeypatch.setattr(releases, "download", download)
    paths = RELEASE.locate(DataSettings(cache=tmp_path))
    assert paths == [tmp_path / "a_set" / "a.zip", tmp_path / "a_set" / "b.zip"]
    assert "Licence: CC0" in capsys.readouterr().err
    RELEASE.fetch(tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("ONEREC_CACHE", str(tmp_path / "other"))
    assert RELEASE.fetch(None)[0] == tmp_path / "other" / "a_set" / "a.zip"


def test_a_folder_with_the_published_files_means_those_files_else_the_folder_itself(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(CONTENT)
    assert RELEASE.locate(DataSettings(path=tmp_path)) == [tmp_path]
    (tmp_path / "b.zip").write_bytes(b"any")
    assert RELEASE.locate(DataSettings(path=tmp_path)) == [tmp_path / "a.zip", tmp_path / "b.zip"]


def test_a_file_under_the_published_name_must_have_the_published_checksum(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"half")
    with pytest.raises(DataError, match=r"expected .* as published"):
        RELEASE.locate(DataSettings(path=tmp_path / "a.zip"))


def test_provenance_hashes_what_was_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CONTENT)
    (tmp_path / "readme").write_bytes(b"not read")
    provenance = RELEASE.provenance([tmp_path], "*.csv")
    assert provenance.files == {"a.csv": hashlib.sha256(CONTENT).hexdigest()}
    assert (provenance.source, provenance.licence, provenance.citation) == ("A set", "CC0", "Anon. 2020")


def test_an_unknown_variant_names_the_nearest() -> None:
    assert choose_variant("set", ("small", "large"), None, "small") == "small"
    with pytest.raises(ConfigError, match=r"found 'smal', expected one of small, large\. Did you mean 'small'\?"):
        choose_variant("set", ("small", "large"), "smal")
    with pytest.raises(ConfigError, match="found None"):
        choose_variant("set", ("small", "large"), None)


def test_every_public_set_declares_its_terms() -> None:
    sources = available_sources()
    public = {"embedded", "movielens", "amazon2014", "amazon2018", "amazon2023", "kuairand", "kuairec", "mind"}
    assert public <= set(sources)
    for name in public:
        assert sources[name].licence
        assert sources[name].citation
        assert sources[name].fetch is not None
