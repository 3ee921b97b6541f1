"""Every code block of the documentation that is marked as runnable runs, and every internal link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "templates" not in path.parts)
BLOCK = re.compile(r"<!-- run -->\s*```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
DATA = sorted((ROOT / "data").rglob("*.md"))
WITH_LINKS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DATA, *PAGES]
GENERATED = "reference/"
WRITTEN_ELSEWHERE = re.compile(r"^(https?:|mailto:)")


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text())


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_every_seam_has_a_runnable_example() -> None:
    for page in (ROOT / "docs" / "extend").glob("*.md"):
        assert blocks(page) or page.stem == "index", page


def test_the_readme_draws_a_picture_in_five_lines() -> None:
    (example,) = blocks(ROOT / "README.md")
    assert len(example.split("\n")) - example.count("\n\n") - 1 <= 5
    assert "images[0].save(" in example


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in [ROOT / "README.md", *PAGES] if blocks(page)], ids=name_of)
def test_marked_blocks_run(page: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, in the project's root after `make demo`."""
    monkeypatch.chdir(project)
    names: dict[str, Any] = {"__name__": f"docs_{page.stem}"}
    for number, text in enumerate(blocks(page), 1):
        exec(compile(text, f"{page.name}, block {number}", "exec", dont_inherit=True), names)


def anchors(page: Path) -> set[str]:
    """What the site and GitHub call a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", WITH_LINKS, ids=name_of)
def test_internal_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        target, _, anchor = link.partition("#")
        if WRITTEN_ELSEWHERE.match(link) or GENERATED in target:
            continue
        file = page if not target else (page.parent / target).resolve()
        assert file.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {link}"
