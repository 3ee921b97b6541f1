"""Where a folder of finished weights lies: a path, the hub's cache, and last the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

from star.checkpoints.pretrained import CONFIG, PARTS
from star.models.conditioning.hub import fetch_file

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def find_pretrained(directory: str | Path) -> Path:
    """The folder that a path or a hub repository `owner/name` stands for; a folder that exists is never looked up.

    Raises:
        FileNotFoundError: when there is neither, within seconds and without a network too; it says what to do.

    """
    folder = Path(directory).expanduser()
    name = str(directory)
    if folder.exists() or isinstance(directory, Path) or not _REPOSITORY.fullmatch(name):
        return folder
    # the record alone settles quickly whether the repository is in the cache, or can be reached at all
    cached = fetch_file(name, [CONFIG], key="directory").parent
    if _is_whole(cached):
        return cached
    try:
        return _download(name)
    except Exception as error:  # the client's transport library, and so the class of its errors, has changed before
        raise FileNotFoundError(
            f"{name} is in the hub's cache only in part ({cached}), and the rest can't be downloaded "
            f"({type(error).__name__}). Run `hf download {name}` on a machine with a network, or give a folder."
        ) from error


def _is_whole(folder: Path) -> bool:
    """Whether every file that the folder's record names is there."""
    record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    files = record.get("files", ()) if isinstance(record, dict) else ()
    return all((folder / file).is_file() for file in files)


def _download(repository: str) -> Path:
    import huggingface_hub as hub

    wanted = [CONFIG, *(f"{part}.safetensors" for part in PARTS)]
    return Path(hub.snapshot_download(repository, allow_patterns=wanted))
