"""Artefacts survive exceptions, kills and full disks, and refuse what was changed or does not belong together."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from safetensors.torch import save_file

from tokenizer import artifacts
from tokenizer.artifacts import (
    MANIFEST_NAME,
    atomic_file,
    atomic_folder,
    hash_arrays,
    hash_file,
    hash_settings,
    hash_text,
    read_manifest,
    require_same_hash,
    write_json,
    write_manifest,
)
from tokenizer.errors import ArtifactError
from tokenizer.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def leftovers(folder: Path) -> list[str]:
    """Names of temporary files and folders."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def write_half(path: Path) -> None:
    """Begin a file and fail."""
    path.write_text("half")
    raise ZeroDivisionError


def make_artifact(folder: Path, text: str, inputs: dict[str, str] | None = None) -> None:
    """An artefact of kind `words` that holds one file."""
    with atomic_folder(folder) as temporary:
        (temporary / "words.txt").write_text(text)
        write_manifest(temporary, "words", inputs or {}, hash_text("config"))


def killed(program: str, *arguments: Path) -> None:
    """Run a program in a process of its own; it must end by SIGKILL."""
    prologue = "import os, signal, sys\nfrom pathlib import Path\nfrom tokenizer import artifacts\n"
    prologue += "die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    command = [sys.executable, "-c", prologue + program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_file_appears_whole_and_with_ordinary_permissions(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    (tmp_path / "plain").write_text("")
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert leftovers(target.parent) == []


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(target) as temporary:
        write_half(temporary)
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    killed("with artifacts.atomic_file(Path(sys.argv[1])) as t:\n    t.write_text('half'); die()", target)
    assert target.read_text() == "old"


def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    make_artifact(folder, "old")
    with pytest.raises(ZeroDivisionError), atomic_folder(folder) as temporary:
        write_half(temporary / "words.txt")
    assert read_manifest(folder, "words").files == {"words.txt": hash_text("old")}
    assert leftovers(tmp_path) == []


def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    make_artifact(folder, "old")
    (folder / "left.txt").write_text("of the old one")
    make_artifact(folder, "new")
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST_NAME, "words.txt"]
    assert (folder / "words.txt").read_text() == "new"
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("end", "still_in_place"),
    [
        pytest.param("die()", True, id="while writing"),
        pytest.param("os.replace = die", True, id="before the first rename"),
        pytest.param("first = os.replace; os.replace = lambda *a: (first(*a), die())", False, id="between the renames"),
    ],
)
def test_a_kill_leaves_the_last_good_folder(tmp_path: Path, end: str, still_in_place: bool) -> None:
    folder = tmp_path / "words"
    make_artifact(folder, "old")
    program = f"""
with artifacts.atomic_folder(Path(sys.argv[1])) as temporary:
    (temporary / "words.txt").write_text("new")
    artifacts.write_manifest(temporary, "words", {{}}, "")
    {end}
"""
    killed(program, folder)
    assert folder.exists() == still_in_place
    assert read_manifest(folder, "words").files == {"words.txt": hash_text("old")}
    make_artifact(folder, "newer")
    assert read_manifest(folder, "words").files == {"words.txt": hash_text("newer")}


def test_writing_again_after_a_kill_between_the_renames_still_keeps_the_last_good_folder(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    make_artifact(folder, "old")
    folder.rename(tmp_path / f".words.abc{artifacts._RETIRED}")
    with pytest.raises(ZeroDivisionError), atomic_folder(folder):
        raise ZeroDivisionError
    assert read_manifest(folder, "words").files == {"words.txt": hash_text("old")}


def test_a_reader_between_the_two_renames_does_not_hold_the_writer_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "words"
    make_artifact(folder, "old")
    replace, seen = os.replace, []

    def replace_and_read(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(target).name.endswith(artifacts._RETIRED) and not seen:
            seen.append(read_manifest(folder, "words").files["words.txt"])

    monkeypatch.setattr(os, "replace", replace_and_read)
    make_artifact(folder, "new")
    assert seen == [hash_text("old")]
    assert read_manifest(folder, "words").files == {"words.txt": hash_text("new")}
    assert leftovers(tmp_path) == []


def test_another_artifacts_leavings_are_not_taken(tmp_path: Path) -> None:
    make_artifact(tmp_path / f".words-2.abc{artifacts._RETIRED}", "other")
    with pytest.raises(ArtifactError, match="found no manifest"):
        read_manifest(tmp_path / "words", "words")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(tiny_disk: Path) -> None:
    make_artifact(tiny_disk / "words", "old")
    with pytest.raises(ArtifactError, match=r"disk is full.*nothing was lost"):
        make_artifact(tiny_disk / "words", "x" * 100_000)
    assert read_manifest(tiny_disk / "words", "words").files == {"words.txt": hash_text("old")}
    assert leftovers(tiny_disk) == []
    with pytest.raises(ArtifactError, match="disk is full"):
        write_json(tiny_disk / "file.json", ["x" * 100_000])
    assert leftovers(tiny_disk) == []


@pytest.mark.parametrize(
    "write",
    [
        lambda path: np.save(path.with_suffix(".npy"), np.zeros(100_000)),
        lambda path: pl.DataFrame({"number": np.random.default_rng(0).random(100_000)}).write_parquet(path),
        lambda path: torch.save(torch.zeros(100_000), path),
        lambda path: save_file({"zeros": torch.zeros(100_000)}, path),
    ],
    ids=["numpy", "polars", "torch", "safetensors"],
)
def test_a_full_disk_as_libraries_tell_of_it(tiny_disk: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(ArtifactError, match="disk is full"), atomic_folder(tiny_disk / "artefact") as temporary:
        write(temporary / "file")
    assert leftovers(tiny_disk) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    make_artifact(tmp_path / "words", "old")
    write_json(tmp_path / "file.json", "old")

    def fail(*_: object) -> None:
        raise NO_SPACE

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(ArtifactError, match="disk is full"):
            make_artifact(tmp_path / "words", "new")
        with pytest.raises(ArtifactError, match="disk is full"):
            write_json(tmp_path / "file.json", "new")
    assert read_manifest(tmp_path / "words", "words").files == {"words.txt": hash_text("old")}
    assert json.loads((tmp_path / "file.json").read_text()) == "old"
    assert leftovers(tmp_path) == []


def test_a_second_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "words"
    make_artifact(folder, "old")
    replace = os.replace

    def fail_at_the_second(source: Path, target: Path) -> None:
        if Path(target) == folder and not Path(source).name.endswith(artifacts._RETIRED):
            raise NO_SPACE
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_second)
    with pytest.raises(ArtifactError, match="disk is full"):
        make_artifact(folder, "new")
    assert read_manifest(folder, "words").files == {"words.txt": hash_text("old")}
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, writer: object) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match=r"words: cannot write here .*Choose a folder"):
        writer(tmp_path / "file" / "words").__enter__()  # type: ignore[operator]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write read-only folders")
        with pytest.raises(ArtifactError, match="cannot write here"):
            make_artifact(tmp_path / "words", "new")
    finally:
        tmp_path.chmod(0o755)


def test_a_file_in_the_place_of_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("mine")
    with pytest.raises(ArtifactError, match="cannot write here"):
        make_artifact(tmp_path / "words", "new")
    assert (tmp_path / "words").read_text() == "mine"
    assert leftovers(tmp_path) == []


def test_other_errors_of_the_system_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "words") as temporary:
        (temporary / "missing").read_text()


def test_a_manifest_records_what_was_written(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "words") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "a.txt").write_text("a")
        written = write_manifest(temporary, "words", {"data": "d1"}, "c1", {"note": 1})
    manifest = read_manifest(tmp_path / "words", "words")
    assert manifest == written
    assert (manifest.inputs, manifest.config_hash, manifest.details) == ({"data": "d1"}, "c1", {"note": 1})
    assert manifest.files == {"deep/a.txt": hash_text("a")}
    assert manifest.packages["numpy"] == np.__version__


def test_the_content_hash_is_of_the_files_alone(tmp_path: Path) -> None:
    make_artifact(tmp_path / "one", "same", {"data": "d1"})
    make_artifact(tmp_path / "two", "same", {"data": "d2"})
    make_artifact(tmp_path / "three", "other", {"data": "d1"})
    one, two, three = (read_manifest(tmp_path / name, "words").content_hash for name in ("one", "two", "three"))
    assert one == two != three


def test_a_changed_file_is_refused_with_both_hashes(tmp_path: Path) -> None:
    make_artifact(tmp_path / "words", "old")
    (tmp_path / "words" / "words.txt").write_text("changed")
    with pytest.raises(ArtifactError) as error:
        read_manifest(tmp_path / "words", "words")
    assert hash_text("changed") in str(error.value)
    assert hash_text("old") in str(error.value)
    assert read_manifest(tmp_path / "words", "words", verify_files=False).kind == "words"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "data"}, "found an artefact of kind 'data', expected 'words'"),
        ({"format_version": 999}, "found format version 999, expected 1"),
        ({"files": {"gone.txt": "0"}}, r"gone\.txt of its manifest is missing"),
        ({"files": None}, r"damaged manifest \(1 problems\)"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    make_artifact(tmp_path / "words", "old")
    path = tmp_path / "words" / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=message):
        read_manifest(tmp_path / "words", "words")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_truncated_manifest_is_refused(tmp_path: Path, text: str) -> None:
    make_artifact(tmp_path / "words", "old")
    (tmp_path / "words" / MANIFEST_NAME).write_text(text)
    with pytest.raises(ArtifactError, match="damaged manifest"):
        read_manifest(tmp_path / "words", "words")


def test_a_pair_that_does_not_belong_together_shows_both_hashes() -> None:
    require_same_hash("the table", "aaa", "aaa", "Train again.")
    with pytest.raises(ArtifactError, match=r"the table: found hash aaa, expected bbb\. Train again\."):
        require_same_hash("the table", "aaa", "bbb", "Train again.")


def test_hashes_are_sha256(tmp_path: Path) -> None:
    """The digest of `abc` as FIPS 180-2, appendix B.1, prints it."""
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "file").write_bytes(b"abc")
    assert hash_text("abc") == hash_file(tmp_path / "file") == expected


def test_array_hashes_tell_type_shape_order_and_content_apart() -> None:
    base = np.arange(6, dtype=np.int32)
    different = [base.astype(np.int64), base.reshape(2, 3), base.reshape(3, 2), base[::-1], base + 1, base[:5]]
    assert len({hash_arrays(array) for array in [base, *different]}) == 7
    assert hash_arrays(base, base) != hash_arrays(base)
    assert hash_arrays(np.asfortranarray(base.reshape(2, 3))) == hash_arrays(base.reshape(2, 3))


class _Group(Settings):
    weights: dict[str, int] = Field({}, description="any")


@given(st.dictionaries(st.text("abc", max_size=3), st.integers(), max_size=4))
def test_settings_hashes_do_not_depend_on_key_order(weights: dict[str, int]) -> None:
    turned = dict(reversed(weights.items()))
    assert hash_settings(_Group(weights=weights)) == hash_settings(_Group(weights=turned))
    assert hash_settings(_Group(weights=weights)) != hash_settings(_Group(weights=weights | {"more": 1, "longer": 0}))
    assert hash_settings([_Group(), _Group()]) != hash_settings(_Group())
