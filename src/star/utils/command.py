"""What the commands `python -m star.X KEY=VALUE ...` have in common."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Callable, Sequence

from star.utils.cli import readable_errors


def run_command(
    text: str, action: Callable[[list[str]], object], arguments: Sequence[str] | None, *, bare: bool = False
) -> None:
    """Explain the command, or run it with errors as one message.

    Args:
        text: what --help says.
        action: takes the command line's words.
        arguments: the words; None takes those that the process was started with.
        bare: run without any word, too, in place of explaining.

    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not (given or bare) or {"--help", "-h"} & set(given):
        sys.stdout.write(text)
        return
    with readable_errors():
        action(given)


def split_arguments(arguments: Sequence[str], own: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """A command's own values by name, and the other KEY=VALUE words, which are a configuration's.

    Args:
        arguments: the command line's words.
        own: names that are the command's.

    Raises:
        ValueError: for a word that isn't KEY=VALUE.

    """
    given: dict[str, str] = {}
    others = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            near = difflib.get_close_matches(name, own, n=1)
            raise ValueError(f"arguments are KEY=VALUE, got {argument!r}{f'; {near[0]}=...?' if near else ''}")
        if name in own:
            given[name] = value
        else:
            others.append(argument)
    return given, tuple(others)
