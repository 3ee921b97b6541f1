"""Whether shards can be trained on, and what is in them: `python -m star.data.inspect --help`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from star.data.captions import Captions
from star.data.checker import Checker
from star.data.pack import write_summary
from star.data.shards import ShardError, read_shard, shard_name
from star.data.sources import expand_urls
from star.data.summary import Summary
from star.utils.command import run_command

log = logging.getLogger("inspect")

HELP = """\
Read shards as training does, and say what is in them and what can't be used.

  python -m star.data.inspect '/data/shards-{000..099}.tar'        out=FOLDER for the summary, default outputs/inspect
  python -m star.data.inspect /data/shards captions='{caption_long: 0.8, txt: 0.2}'

Addresses are what data.sources.NAME.urls takes: paths, folders, globs, braces, pipe:, s3://, http://. Writes
summary.html (counts, sizes, caption lengths, a contact sheet, what is skipped by cause) and summary.json; ends with an
error if a shard is damaged or nothing can be used.

  out=       where the summary goes
  captions=  caption fields with weights, as data.sources.NAME.captions; default {txt: 1.0}
  limit=     look at so many samples of each shard; default: all
"""
SETTINGS = ("out", "captions", "limit")


def inspect(
    urls: Sequence[str], out: Path, *, captions: Mapping[str, float] | None = None, limit: int | None = None
) -> Summary:
    """Read shards and write their summary.

    Args:
        urls: addresses, see `ShardSource`.
        out: the folder of the summary.
        captions: field -> weight.
        limit: samples of each shard; None reads all.

    Raises:
        ValueError: when there are no shards, one is damaged, or nothing can be used; the summary is written before.

    """
    shards = expand_urls(list(urls), "the shards' address")
    summary = Summary()
    checker = Checker(summary, Captions() if captions is None else Captions(captions))
    with Progress() as progress:
        for url in progress.track(shards, description="inspecting"):
            _look(url, checker, limit)
    write_summary(summary, out, title=f"{len(shards)} shards, {shards[0]} ...")
    if summary.samples and (absent := [name for name in checker.captions.fields if not summary.fields[name]]):
        log.warning(
            "no usable sample has the caption field %s: is it spelt as in the samples' json?", ", ".join(absent)
        )
    if summary.damaged:
        first = next(iter(summary.damaged.items()))
        raise ValueError(
            f"{len(summary.damaged)} of {len(shards)} shards are damaged, e.g. {first[0]} ({first[1]}); training uses "
            "what lies before the damage"
        )
    if not summary.samples:
        raise ValueError("no sample can be used")
    return summary


def _look(url: str, checker: Checker, limit: int | None) -> None:
    summary = checker.summary
    summary.shards += 1
    try:
        for number, raw in enumerate(read_shard(url)):
            if number == limit:
                break
            checker(raw)
    except ShardError as error:
        summary.damaged[shard_name(url)] = f"{error.reason}: {error}"


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """A command line as the arguments of `inspect`.

    Raises:
        ValueError: for an unknown setting, a caption mapping that is none, or no address.

    """
    given: dict[str, str] = {}
    urls = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name in SETTINGS:
            given[name] = value
        elif equals and name.isidentifier():
            raise ValueError(f"{name}= is no setting: known are {', '.join(SETTINGS)}")
        else:
            urls.append(argument)
    if not urls:
        raise ValueError("give the address of the shards; --help explains")
    limit = given.get("limit")
    if limit is not None and (not limit.isdigit() or int(limit) < 1):
        raise ValueError(f"limit is a whole number of at least 1, got {limit!r}")
    captions = None
    if "captions" in given:
        captions = _mapping(given["captions"])
    return {
        "urls": urls,
        "out": Path(given.get("out", "outputs/inspect")),
        "captions": captions,
        "limit": None if limit is None else int(limit),
    }


def _mapping(text: str) -> Any:
    """A mapping as it is written on a command line."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        config = OmegaConf.create(f"captions: {text}")
        return OmegaConf.to_container(config)["captions"]  # type: ignore[index, call-overload]
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"captions is a mapping such as {{caption_long: 0.8, txt: 0.2}}, got {text!r}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    run_command(HELP, lambda given: inspect(**parse(given)), arguments)


if __name__ == "__main__":
    main()
