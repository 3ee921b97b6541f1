"""Who may import whom, and which libraries stay behind which door."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "star"
RINGS = [
    {"schedule", "types", "figures"},
    {"nn"},
    {"models"},
    {"objectives", "sampling", "checkpoints"},
    {"training", "callbacks", "pipeline", "pipeline_call"},
]
LEAVES = {"data", "metrics", "utils"}
UTILS_FROM = 2  # utils may be imported from models upwards
COMMANDS = {"bench", "demo", "drawing", "evaluation", "page", "plan", "report", "studies"}
COMMAND_FILES = {
    "data/cache.py",
    "data/pack.py",
    "data/shapes.py",
    "data/inspect.py",
    "checkpoints/convert.py",
    "checkpoints/consolidate.py",
}
DOORS = {
    "hydra": {"utils"},
    "lightning": {"training", "callbacks", "data"},
    "webdataset": {"data"},
    "wandb": {"callbacks"},
}
FILES = sorted(SRC.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every dotted name that a file imports at run time, wherever in the file it does so."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def unit_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def is_command(path: Path) -> bool:
    return unit_of(path) in COMMANDS or str(path.relative_to(SRC)) in COMMAND_FILES


def allowed(unit: str) -> set[str]:
    if unit in LEAVES:
        return RINGS[0] | {unit}
    if unit == "extensions":
        return set().union(*RINGS[:4]) | {"extensions", "utils"}
    depth = next(i for i, ring in enumerate(RINGS) if unit in ring)
    below = set().union(*RINGS[:depth]) | ({"utils"} if depth >= UTILS_FROM else set())
    last = depth == len(RINGS) - 1
    return below | RINGS[depth] | LEAVES if last else below | {unit} | (RINGS[0] if depth == 0 else set())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_point_down(path: Path) -> None:
    unit = unit_of(path)
    if unit == "__init__":
        return
    names = imports(path)
    inside = {name.split(".")[1] for name in names if name.startswith("star.")} - {"__version__"}
    if is_command(path):
        for library in ("webdataset", "wandb"):
            assert not any(name.split(".")[0] == library for name in names), f"{library} stays in {DOORS[library]}"
        return
    assert inside <= allowed(unit), f"{unit} may not import {sorted(inside - allowed(unit))}"
    for library, rooms in DOORS.items():
        if any(name.split(".")[0] == library for name in names):
            assert unit in rooms, f"{library} stays in {sorted(rooms)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_nothing_imports_commands_or_extensions(path: Path) -> None:
    if is_command(path) or unit_of(path) == "extensions":
        return
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("star.")}
    assert not inside & (COMMANDS | {"extensions"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or node.lineno) - node.lineno < 50, f"{node.name} has more than 50 lines"


@pytest.mark.parametrize("name", ["train.py", "sample.py", "evaluate.py", "app.py"])
def test_root_scripts_stay_thin(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= 60


def test_heavy_libraries_wait_until_they_are_used() -> None:
    """`import star...` outside of training is torch and no more."""
    heavy = {"open_clip", "transformers", "webdataset", "matplotlib", "wandb", "timm", "sentence_transformers"}
    for path in FILES:
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & heavy, path
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split(".")[0] not in heavy, path
