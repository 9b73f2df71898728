"""Rules that no linter has: no comparison thrown away, no machine's paths, no long file, no note to oneself."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".html", ".css", ".js", ".svg", ""}
MAX_LINES = 500
COMPARISONS = {"equal", "allclose", "array_equal", "isclose", "array_equiv"}
# Spelt in two pieces, so that this file keeps its own rules.
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:work|home|root|Users|tmp|mnt|farm)" + "/[A-Za-z]")
NOTE = re.compile(r"\b(?:" + "TO" + "DO|FIX" + "ME|X" + "XX|HA" + r"CK)\b")


def project_files() -> list[Path]:
    """Text files that git tracks or would track; all of them where there is no git."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        paths = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.parts)]
    return [path for path in paths if path.is_file() and path.suffix in SUFFIXES and path.name != "LICENSE"]


FILES = project_files()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def comparisons_thrown_away(source: str) -> Iterator[int]:
    """Lines of statements such as `torch.equal(a, b)` whose answer nobody reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Compare):
            call = node.value
            name = getattr(call.func, "attr", getattr(call.func, "id", "")) if isinstance(call, ast.Call) else "=="
            if name in COMPARISONS | {"=="}:
                yield node.lineno


def matches(pattern: re.Pattern[str], text: str) -> list[str]:
    return [
        f"line {number}: {line.strip()}" for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)
    ]


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".py"], ids=name_of)
def test_no_comparison_is_thrown_away(path: Path) -> None:
    assert list(comparisons_thrown_away(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short_and_speaks_of_no_machine_and_no_unfinished_work(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES
    assert matches(MACHINE_PATH, text) == []
    assert matches(NOTE, text) == []


def test_the_rules_themselves() -> None:
    assert list(
        comparisons_thrown_away("torch.equal(a, b)\nassert torch.equal(a, b)\nx = np.allclose(a, b)\na == b\n")
    ) == [1, 4]
    assert matches(MACHINE_PATH, "see " + "/home" + "/someone/x\nsrc/home/page.html and ./tmp/a\n") != []
    assert len(matches(MACHINE_PATH, "see " + "/home" + "/someone/x\nsrc/home/page.html and ./tmp/a\n")) == 1
    assert len(matches(NOTE, "# TO" + "DO: later\n# todos are fine\n")) == 1
