"""The site builds without network and without a warning, and needs nothing from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"?(?:https?:)?//[^\">]+")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    nowhere = "http://127.0.0.1:9"
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "http_proxy": nowhere, "https_proxy": nowhere}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_nothing_is_fetched_from_outside(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        canonical = [found for found in FETCHED.findall(page.read_text()) if 'rel="canonical"' not in found]
        assert not canonical, page


@pytest.mark.slow
def test_every_option_is_in_the_configuration_reference(site: Path) -> None:
    page = (site / "reference" / "configuration.html").read_text()
    for path in (ROOT / "conf").glob("*/*.yaml"):
        assert f"{path.parent.name}={path.stem}" in page


@pytest.mark.slow
def test_every_public_class_is_in_the_api_reference(site: Path) -> None:
    text = "".join(page.read_text() for page in (site / "reference" / "api").glob("*.html"))
    for name in ("STARPipeline", "ScaleSchedule", "MultiScaleVQ", "CausalDriven", "ShardDataModule", "ScoreMean"):
        assert f'.{name}"' in text


def pages_of(nav: list) -> list[str]:
    values = [value for entry in nav for value in entry.values()]
    return [page for value in values for page in ([value] if isinstance(value, str) else pages_of(value))]


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.CSafeLoader)["nav"]
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert written == set(pages_of(nav))


def test_every_conf_file_begins_with_what_it_is() -> None:
    """The reference takes the first comment of each."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, options in generate.groups(ROOT / "conf"):
        for path in options:
            assert generate.about(path), f"{name}/{path.name} has no comment that says what it is"
