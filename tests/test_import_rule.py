"""The house: imports go downwards only, nobody imports a door, and importing a module does nothing."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOORS = {"train", "serve"}
# Floor -> the floors below it. A name belongs to the longest floor that it lies within.
FLOORS: dict[str, set[str]] = {
    "kernels": set(),
    "tokenizer": {"kernels"},
    "onerec": {"kernels", "tokenizer"},
    "onerec.serving": {"kernels", "tokenizer", "onerec"},
    "rl": {"kernels", "tokenizer", "onerec"},
}
# What a room may not import though its floor may: the model knows nothing of training, the trainer nothing of
# semantic-ID fitting, the server nothing of training, the world nothing of who plays in it.
WALLS: dict[str, set[str]] = {
    "onerec.model": {"onerec.training"},
    "onerec.decoding": {"onerec.training"},
    "onerec.training": {"tokenizer.fit"},
    "onerec.serving": {"onerec.training"},
    "onerec.world": {"onerec.data", "onerec.model", "onerec.training"},
}
MODULES = sorted(path for top in ("kernels", "tokenizer", "onerec", "rl") for path in (ROOT / top).rglob("*.py"))
ENTRY_POINTS = [path for path in (ROOT / "train.py", ROOT / "serve.py") if path.exists()]


def module_name(path: Path) -> str:
    """`onerec/data/__init__.py` -> `onerec.data`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(source: str) -> Iterator[str]:
    """Absolute names a module imports anywhere; `from a import b` gives both `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which floor is meant"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def floor_of(name: str) -> str | None:
    """The floor a module lies on, None for what is not ours."""
    return max((floor for floor in FLOORS if within(name, floor)), key=len, default=None)


def offences(module: str, source: str) -> list[str]:
    """Names that `module` may not import."""
    floor = floor_of(module)
    assert floor is not None
    allowed = {None, floor, *FLOORS[floor]}
    walls = {wall for room, behind in WALLS.items() if within(module, room) for wall in behind}
    return [
        name
        for name in imported_names(source)
        if name.split(".")[0] in DOORS or floor_of(name) not in allowed or any(within(name, wall) for wall in walls)
    ]


def statements_that_act(source: str) -> list[int]:
    """Lines of module-level statements other than definitions, imports and assignments."""
    tree = ast.parse(source)
    quiet = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    return [
        node.lineno
        for node in tree.body
        if not isinstance(node, quiet)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))  # docstrings
        and not (isinstance(node, ast.If) and ast.unparse(node.test) in {"__name__ == '__main__'", "TYPE_CHECKING"})
        and not _registers(node)
        and not _falls_back(node)
    ]


def _registers(node: ast.stmt) -> bool:
    """`AutoConfig.register(...)`, by which transformers learns of a class."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "register"
    )


def _falls_back(node: ast.stmt) -> bool:
    """`try: import x` with handlers for its absence, by which optional packages are met."""
    return isinstance(node, ast.Try) and all(isinstance(inner, ast.Import | ast.ImportFrom) for inner in node.body)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_downwards(path: Path) -> None:
    assert offences(module_name(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [*MODULES, *ENTRY_POINTS], ids=module_name)
def test_modules_hold_only_definitions(path: Path) -> None:
    assert statements_that_act(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", ENTRY_POINTS, ids=module_name)
def test_doors_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120


def test_importing_everything_prints_nothing_and_starts_nothing(tmp_path: Path) -> None:
    names = [module_name(path) for path in [*MODULES, *ENTRY_POINTS] if path.name != "__main__.py"]
    if importlib.util.find_spec("triton") is None:  # the kernels themselves, which dispatchers import where it is there
        names = [name for name in names if not name.startswith("kernels.triton_")]
    program = f"""
import importlib, sys, threading
sys.path.insert(0, {str(ROOT)!r})
for name in {names!r}:
    importlib.import_module(name)
    assert threading.active_count() == 1, f"{{name}} starts a thread"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("tokenizer.fit", "import onerec.model", ["onerec.model"]),
        ("tokenizer.fit", "def f():\n    from onerec import model", ["onerec", "onerec.model"]),
        ("kernels", "import tokenizer", ["tokenizer"]),
        ("onerec.data", "import rl.dpo", ["rl.dpo"]),
        ("onerec.data", "import onerec.serving", ["onerec.serving"]),
        ("onerec.serving.app", "import rl", ["rl"]),
        ("rl.dpo", "from onerec import serving", ["onerec.serving"]),
        ("onerec.serving.app", "import onerec.training.trainer", ["onerec.training.trainer"]),
        ("rl.dpo", "import train", ["train"]),
        ("onerec.serving.app", "import onerec.model, tokenizer, kernels", []),
    ],
)
def test_the_rule_itself(module: str, source: str, expected: list[str]) -> None:
    assert offences(module, source) == expected


def test_the_check_of_module_level_code_itself() -> None:
    assert statements_that_act('"""Doc."""\nimport x\nA = 1\ndef f(): pass\nprint(A)\nfor i in x: pass\n') == [5, 6]
    assert statements_that_act('if __name__ == "__main__":\n    main()\n') == []
