"""`python -m star.studies [only=positions,topk] [out=outputs/studies] [page=docs/studies.md] [NAME.key=value ...]`.

The paper's comparisons in miniature, on what `make demo` left behind: runs the studies, several at a time, and writes
the page. What is finished is used again, what was interrupted goes on. From the project's root.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from star.demo.steps import Step, Steps, passing_on_sigterm
from star.studies import command
from star.studies.page import write_page
from star.studies.registry import STUDIES, Study

HELP = f"""{__doc__}
Settings, and what they are unless given:
  only=                names, comma-separated; all by default
  demo=outputs/demo    where the demo is
  out=outputs/studies  where everything goes
  page=docs/studies.md
  jobs=2               studies that run at a time, with an equal share of the cores each: so small a generator makes
                       little use of a second core. What they say goes into OUT/NAME.log, how far they are is shown
                       every minute. Those that are about the time of things come last, each alone; what others say of
                       seconds was taken on that share, with a neighbour. 1: in turn, all shown
  smoke=false          true: as short as possible, to see whether everything runs; its numbers mean nothing, and its
                       page goes into out=
  NAME.key=value       a setting of one study (positions.steps=800), see python -m star.studies.NAME --help
Studies, and about how many minutes each takes without bf16, on one of two cores (samplers and windows: on both):
""" + "".join(f"  {study.name:<16} {study.minutes:>2}  {study.title}\n" for study in STUDIES)
OWN: dict[str, Callable[[str], Any]] = {"only": command.words, "demo": Path, "out": Path, "page": Path}
OWN["jobs"] = command.count
OWN["smoke"] = lambda text: {"true": True, "false": False}[text]
DEFAULTS: dict[str, Any] = {"only": None, "demo": Path("outputs/demo"), "out": Path("outputs/studies")}
DEFAULTS |= {"page": None, "smoke": False, "jobs": 2}
MINUTE = 60.0
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
    start = time.monotonic()
    chosen = choose(settings["only"])
    demo: Path = settings["demo"]
    if not (demo / "star.ckpt").is_file():
        raise FileNotFoundError(f"no demo in {demo}: run make demo first, or set demo=")
    page: Path = settings["page"] or (settings["out"] / "studies.md" if settings["smoke"] else Path("docs/studies.md"))
    log.info("%d studies, %d at a time", len(chosen), settings["jobs"])
    failed = []
    with passing_on_sigterm():  # the studies' own threads don't hear it
        for name in run_several(chosen, settings, more):
            if name is not None:
                failed.append(name)
            # after each, so that a long run shows what it has
            write_page(STUDIES, settings["out"], page)
    log.info("%s, after %.0f minutes", page, (time.monotonic() - start) / 60)
    if failed:
        raise ValueError(f"failed: {', '.join(failed)}; the same command tries again")


def run_several(studies: Sequence[Study], settings: dict[str, Any], more: dict[str, list[str]]) -> Iterator[str | None]:
    """Run studies as `jobs` says, and yield whenever one is over: None, or its name where it has failed."""
    together = sorted((study for study in studies if not study.alone), key=lambda study: -study.minutes)
    for jobs, part in ((settings["jobs"], together), (1, [study for study in studies if study.alone])):
        with ThreadPoolExecutor(jobs) as pool:
            names = {pool.submit(run, study, settings, more.get(study.name, []), jobs): study.name for study in part}
            try:
                yield from outcomes(names, settings["out"] if jobs > 1 else None)
            except BaseException:  # an interrupted study says so itself; those that wait don't begin
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def outcomes(names: dict[Future[None], str], logs: Path | None) -> Iterator[str | None]:
    """One for each study, as soon as it is over; once a minute, how far those are whose logs are in a folder."""
    waiting = set(names)
    while waiting:
        over, waiting = wait(waiting, timeout=MINUTE, return_when=FIRST_COMPLETED)
        for future in over:
            if (error := future.exception()) is None:
                yield None
            elif isinstance(error, ChildProcessError):
                log.error("%s", error)
                yield names[future]
            else:
                raise error
        if logs is not None and not over:
            for name in sorted(names[future] for future in waiting if future.running()):
                log.info("%s: %s", name, last_line(logs / f"{name}.log"))


def last_line(path: Path) -> str:
    """The last thing that a study has said, without a logger's date and name."""
    lines = path.read_text(errors="replace").split("\n") if path.is_file() else []
    return next((line.rpartition("[INFO] - ")[2].strip() for line in reversed(lines) if line.strip()), "has begun")


def run(study: Study, settings: dict[str, Any], more: Sequence[str], jobs: int = 1) -> None:
    """One study, unless it has run with the same settings before; one of several has its share of the cores."""
    out: Path = settings["out"]
    out.mkdir(parents=True, exist_ok=True)
    words = study.command(demo=settings["demo"], out=out, smoke=settings["smoke"], more=more)
    step = Step(study.name, study.title, words, [words, *made_of(settings["demo"], words)])
    if jobs > 1:
        step = replace(step, threads=max(1, (os.cpu_count() or 1) // jobs), output=out / f"{study.name}.log")
    Steps(out / f"{study.name}.steps.json").run([step])


def made_of(demo: Path, words: Sequence[str]) -> list[float]:
    """When the demo's files that a study depends on were written: another refiner leaves `star.ckpt` as it is."""
    refiner = demo / "refiner.ckpt"
    named = refiner.is_file() and any(word.endswith(f"={refiner}") for word in words)
    return [path.stat().st_mtime for path in (demo / "star.ckpt", *([refiner] if named else []))]


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
