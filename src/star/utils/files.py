"""Files that are either whole or not there."""

from __future__ import annotations

import os
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
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        with suppress(OSError):
            partial.unlink()
        before = "the file that was there before is untouched" if path.exists() else "nothing was left behind"
        raise OSError(f"could not write {path} ({error}); {before}. Is the disk full?") from error
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
