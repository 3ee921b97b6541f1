"""Files and folders that are either whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk, and only then give it its name.

    Raises:
        OSError: when it can't be written (a full disk, say); what was at `path` before is still there.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        flush(partial)
        put_in_place(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        with suppress(OSError):
            partial.unlink()
        before = "the file that was there before is untouched" if path.exists() else "nothing was left behind"
        raise OSError(f"could not write {path} ({error}); {before}. Is the disk full?") from error
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def flush(file: Path) -> None:
    """Wait until a file is on the disk."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def put_in_place(partial: Path, path: Path) -> None:
    """Give a finished file or folder its name, in place of what had it.

    A file changes its name in one step. A folder can't take the place of another: the old one steps aside for an
    instant. Should the process die in it, that one is still there, where `set_aside` says.
    """
    if not path.is_dir() and not partial.is_dir():
        partial.replace(path)
        return
    aside = set_aside(path)
    if path.exists():
        remove(aside)
        path.rename(aside)
    partial.rename(path)
    remove(aside)


def set_aside(path: Path) -> Path:
    """Where the old folder waits while a new one takes its name."""
    return path.with_name(f".{path.name}.before")


def remove(path: Path) -> None:
    """Delete a file or folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Delete what processes that died while writing left in a folder; only where nobody is writing.

    What is set aside stays as long as nothing has its name.
    """
    for partial in folder.glob(".*.partial"):
        remove(partial)
    for aside in folder.glob(".*.before"):
        if (folder / aside.name[1 : -len(".before")]).exists():
            remove(aside)
