"""Every command that the documentation shows composes: its options, keys and quoting are those of conf/."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from star.utils.cli import compose, quote_arguments

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *(page for folder in ("docs", "data") for page in sorted((ROOT / folder).rglob("*.md"))),
    *sorted((ROOT / "conf").glob("*.yaml")),  # what --help says
]
COMMAND = re.compile(r"(?:python|torchrun)\s[^`\n]*?\b(train|sample|evaluate|app)\.py([^`\n]*)")
AFTER = re.compile(r"\s{2,}\(|\s#")  # a remark
LAUNCHER = re.compile(r"hydra[./]")  # its plugins need not be installed
YOURS = re.compile(r"=(?:.*,)?(?:cooled|centred|PRESET)$")  # options that a page tells its reader to write or choose


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Root script and words of every command, as a shell would hand them over."""
    lines = [line for line in text.splitlines() if not line.startswith("# ")]
    for script, rest in COMMAND.findall(re.sub(r"\\\n\s*", " ", "\n".join(lines))):
        words = [word for word in shlex.split(AFTER.split(rest)[0]) if "=" in word]
        yield script, [word for word in words if not (LAUNCHER.match(word) or YOURS.search(word))]


def first_job(words: list[str]) -> list[str]:
    """The words of a sweep's first job; others as they are."""
    parsed = OverridesParser.create().parse_overrides(quote_arguments(words))
    return [
        f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        if override.is_sweep_override()
        else word
        for override, word in zip(parsed, words, strict=True)
    ]


SHOWN = [(page, *command) for page in PAGES for command in commands(page.read_text())]


def test_commands_are_found() -> None:
    assert len(SHOWN) > 50
    assert ("train", ["data.sources.laion.urls=/a/{0..9}.tar"]) in commands(
        "    python train.py \\\n      data.sources.laion.urls='/a/{0..9}.tar'  # why"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_compose(page: Path) -> None:
    for script, words in commands(page.read_text()):
        assert compose(script, first_job(words)), words


def options(group: str) -> set[str]:
    return {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}


def named(words: str) -> set[str]:
    return set(re.findall(r"[\w.]+", words))


def test_the_readme_names_every_group_and_option() -> None:
    told: dict[str, set[str]] = {}
    for groups, words in re.findall(r"^\| (`.*?) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE):
        for group in re.findall(r"`(\w+)`", groups):
            told[group] = named(words)
    folders = {path.parent.name for path in (ROOT / "conf").glob("*/*.yaml")}
    assert told.keys() == folders
    for group in folders:
        assert options(group) - {"none"} <= told[group], group


@pytest.mark.parametrize("script", ["sample", "evaluate", "app"])
def test_help_names_every_option_that_is_drawn_with(script: str) -> None:
    text = (ROOT / "conf" / f"{script}.yaml").read_text()
    groups = ("sampling", "speed", "pretrained", *(["metric"] if script == "evaluate" else []))
    for group in groups:
        assert options(group) - {"none"} <= named(text), group


def test_help_of_train_explains_every_group() -> None:
    defaults = yaml.safe_load((ROOT / "conf" / "train.yaml").read_text())
    groups = {key.removeprefix("optional ") for entry in defaults["defaults"] if entry != "_self_" for key in entry}
    told = set(re.findall(r"^  (\w+)  +\w", defaults["hydra"]["help"]["template"], re.MULTILINE))
    assert groups - {"local"} <= told
