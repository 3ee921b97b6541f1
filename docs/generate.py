"""MkDocs hook: pages that are made from the code and from conf/, so that they can't disagree with either."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
CONFIGURATION = "reference/configuration.md"
API = "reference/api"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages at the end of the navigation."""
    pages = [{title: uri} for title, uri in ((name, f"{API}/{name}.md") for name in packages())]
    config.nav = [*(config.nav or []), {"Reference": [{"Configuration": CONFIGURATION}, {"API": pages}]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site; nothing is written into docs/."""
    from mkdocs.structure.files import File

    pages = {CONFIGURATION: configuration(ROOT / "conf")}
    pages |= {f"{API}/{name}.md": api(name, modules) for name, modules in packages().items()}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def packages() -> dict[str, list[str]]:
    """Modules of each part of the package, by the part's name; `star` has those that lie at the top."""
    found: dict[str, list[str]] = {}
    source = ROOT / "src"
    for path in sorted((source / "star").rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__"):
            found.setdefault(parts[1] if len(parts) > 2 else "star", []).append(".".join(parts))
    return dict(sorted(found.items(), key=lambda item: (item[0] != "star", item[0])))


def api(name: str, modules: list[str]) -> str:
    """The page of one part: mkdocstrings fills in what the docstrings say."""
    about = (
        ast.get_docstring(ast.parse((ROOT / "src" / "star" / name / "__init__.py").read_text()))
        if name != "star"
        else None
    )
    lines = [f"# {'star' if name == 'star' else f'star.{name}'}", "", about or "", ""]
    for module in modules:
        lines += [f"## `{module}`", "", f"::: {module}", ""]
    return "\n".join(lines)


def configuration(conf: Path) -> str:
    """The page of all configuration groups, their options and values."""
    lines = [
        "# Configuration",
        "",
        "Made from `conf/`. `group=option` chooses, `group.key=value` sets one value; `python train.py --help` shows",
        "what a command line amounts to. `${...}` takes the value of another key.",
        "",
        "## Entry points",
        "",
    ]
    for path in sorted(conf.glob("*.yaml")):
        lines += details(f"{path.stem}.py", path)
    for group, options in groups(conf):
        lines += [f"## `{group}`", "", "| option | |", "|---|---|"]
        lines += [f"| `{path.stem}` | {about(path)} |" for path in options]
        lines += ["", *(line for path in options for line in details(f"{group}={path.stem}", path))]
    return "\n".join(lines)


def groups(conf: Path) -> Iterator[tuple[str, list[Path]]]:
    """Name and files of every group that has any."""
    for folder in sorted(path for path in conf.rglob("*") if path.is_dir()):
        if options := sorted(folder.glob("*.yaml")):
            yield str(folder.relative_to(conf)), options


def about(path: Path) -> str:
    """The first comment of a configuration file that isn't meant for Hydra."""
    comments = (line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    words = next((comment for comment in comments if comment and not comment.startswith("@package")), "")
    return words.replace("|", "\\|")


def details(title: str, path: Path) -> list[str]:
    """A folded block with the file's text."""
    body = path.read_text().rstrip().splitlines()
    return [f'??? note "{title}"', "", "    ```yaml", *(f"    {line}".rstrip() for line in body), "    ```", ""]
