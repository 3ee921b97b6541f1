"""A sharded checkpoint as one file: `python -m star.checkpoints.consolidate --help`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from star.checkpoints import io
from star.checkpoints.sharded import is_sharded
from star.checkpoints.sharded_reader import read_sharded
from star.utils.command import run_command
from star.utils.files import write_atomically

log = logging.getLogger(__name__)

HELP = """Make one file of a checkpoint that trainer=fsdp wrote in pieces.

  python -m star.checkpoints.consolidate RUN out=star.ckpt
  python -m star.checkpoints.consolidate RUN/checkpoints/step_00001000.ckpt out=star.ckpt slim=true

RUN             a run directory (its last checkpoint) or a sharded checkpoint's folder
out=FILE        where the file goes; it must not exist
slim=true       only what drawing pictures needs: averaged weights and configuration, no optimiser

The file is what one process would have written: sample.py ckpt=, evaluate.py ckpt=, init_from= and resume_from= take
it. It is put together in main memory, on one process, without a GPU.
"""


def consolidate(source: str | Path, out: str | Path, *, slim: bool = False) -> None:
    """Write one file.

    Args:
        source: a run directory or a sharded checkpoint.
        out: the file; must not exist.
        slim: leave out what only resuming needs.

    Raises:
        FileNotFoundError: when there is no checkpoint.
        FileExistsError: when `out` is there already.
        ValueError: when the checkpoint is a single file already, or damaged.

    """
    folder, target = io.find(source), Path(out)
    if not is_sharded(folder):
        raise ValueError(f"{folder} is in one piece already: use it as it is")
    if target.exists():
        raise FileExistsError(f"{target} is there already: choose another out=")
    checkpoint = read_sharded(folder)
    held = io.export(checkpoint) if slim else checkpoint
    write_atomically(target, lambda partial: torch.save(held, partial))
    log.info("written: %s, step %s", target, checkpoint.get("global_step"))


def parse(arguments: Sequence[str]) -> tuple[str, str, bool]:
    """Source, target and whether it shall be slim.

    Raises:
        ValueError: for anything that can't be understood.

    """
    sources = [word for word in arguments if "=" not in word or Path(word).exists()]
    settings = dict(word.split("=", 1) for word in arguments if word not in sources)
    unknown = sorted(settings.keys() - {"out", "slim"})
    if len(sources) != 1 or "out" not in settings or unknown or settings.get("slim", "false") not in ("true", "false"):
        raise ValueError(f"expected DIR out=FILE, and slim=true or false, got {' '.join(arguments)!r}")
    return sources[0], settings["out"], settings.get("slim") == "true"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    run_command(HELP, _run, arguments)


def _run(given: Sequence[str]) -> None:
    source, out, slim = parse(given)
    consolidate(source, out, slim=slim)


if __name__ == "__main__":
    main()
