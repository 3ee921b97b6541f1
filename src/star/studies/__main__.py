"""`python -m star.studies [only=positions,topk] [out=outputs/studies] [page=docs/studies.md] [NAME.key=value ...]`.

The paper's comparisons in miniature, on what `make demo` left behind: runs the studies in turn and writes the page.
What is finished is used again, what was interrupted goes on. From the project's root.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from star.demo.steps import Step, Steps
from star.studies import command
from star.studies.page import write_page
from star.studies.registry import STUDIES, Study

HELP = f"""{__doc__}
Settings, and what they are unless given:
  only=                names, comma-separated; all by default
  demo=outputs/demo    where the demo is
  out=outputs/studies  where everything goes
  page=docs/studies.md
  smoke=false          true: as short as possible, to see whether everything runs; its numbers mean nothing, and its
                       page goes into out=
  NAME.key=value       a setting of one study (positions.steps=800), see python -m star.studies.NAME --help
Studies:
""" + "".join(f"  {study.name:<12} {study.title}\n" for study in STUDIES)
OWN: dict[str, Callable[[str], Any]] = {"only": command.words, "demo": Path, "out": Path, "page": Path}
OWN["smoke"] = lambda text: {"true": True, "false": False}[text]
DEFAULTS: dict[str, Any] = {"only": None, "demo": Path("outputs/demo"), "out": Path("outputs/studies")}
DEFAULTS |= {"page": None, "smoke": False}
log = logging.getLogger("studies")


def run_all(arguments: Sequence[str]) -> None:
    """Run what isn't done, then write the page.

    Raises:
        FileNotFoundError: when there is no demo.
        ValueError: for an unknown study, or when one has failed; the others have run.

    """
    given, rest = command.split_arguments(arguments, OWN)
    settings = DEFAULTS | given
    more = own_words(rest)
    chosen = choose(settings["only"])
    demo: Path = settings["demo"]
    if not (demo / "star.ckpt").is_file():
        raise FileNotFoundError(f"no demo in {demo}: run make demo first, or set demo=")
    page: Path = settings["page"] or (settings["out"] / "studies.md" if settings["smoke"] else Path("docs/studies.md"))
    failed = []
    for study in chosen:
        try:
            run(study, settings, more.get(study.name, []))
        except ChildProcessError as error:
            log.error("%s", error)
            failed.append(study.name)
        # after each, so that a long run shows what it has
        write_page(STUDIES, settings["out"], page)
    log.info("%s", page)
    if failed:
        raise ValueError(f"failed: {', '.join(failed)}; the same command tries again")


def run(study: Study, settings: dict[str, Any], more: Sequence[str]) -> None:
    """One study, unless it has run with the same settings before."""
    out: Path = settings["out"]
    out.mkdir(parents=True, exist_ok=True)
    words = study.command(demo=settings["demo"], out=out, smoke=settings["smoke"], more=more)
    changed = (settings["demo"] / "star.ckpt").stat().st_mtime
    Steps(out / f"{study.name}.steps.json").run([Step(study.name, study.title, words, [words, changed])])


def choose(names: Sequence[str] | None) -> list[Study]:
    """The studies of these names, in the usual order; all of them for None."""
    known = [study.name for study in STUDIES]
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"unknown study {unknown[0]!r}: choose from {', '.join(known)}")
    return [study for study in STUDIES if names is None or study.name in names]


def own_words(words: Sequence[str]) -> dict[str, list[str]]:
    """`positions.steps=800` as {"positions": ["steps=800"]}."""
    found: dict[str, list[str]] = {}
    names = [study.name for study in STUDIES]
    for word in words:
        name, dot, setting = word.partition(".")
        if not dot or name not in names or "=" not in setting:
            raise ValueError(f"unknown argument {word!r}; write one of {', '.join(OWN)}, or NAME.key=value")
        found.setdefault(name, []).append(setting)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command.run(HELP, run_all, arguments)


if __name__ == "__main__":
    main()
