"""Fetches Debian packages without root: download, unpack into a folder, nothing installed."""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)


def fetch_package(name: str, cache: Path, alternative: str) -> Path:
    """The folder into which a Debian package is unpacked; one that is there already is used again.

    Args:
        name: of the package.
        cache: folder for unpacked packages.
        alternative: what a user without this package can do, for the message.

    Raises:
        FileNotFoundError: when the package can't be had; the message says what is missing and what else helps.

    """
    folder = cache / name
    if folder.is_dir():
        return folder
    for command in ("apt-get", "dpkg"):
        if shutil.which(command) is None:
            raise FileNotFoundError(f"{name}: no command '{command}' on this machine; {alternative}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        logger.info("fetching Debian's %s", name)
        downloaded = _run(["apt-get", "download", name], temporary)
        packages = list(Path(temporary).glob("*.deb"))
        if not packages:
            reason = (downloaded.stderr.strip() or "no reason given").splitlines()[-1]
            raise FileNotFoundError(
                f"can't download Debian's package {name} ({reason}); check the network and run `apt-get update`, "
                f"or {alternative}"
            )
        unpacked = _run(["dpkg", "-x", packages[0].name, "unpacked"], temporary)  # run in there
        if unpacked.returncode:
            raise FileNotFoundError(f"can't unpack {packages[0].name}: {unpacked.stderr.strip()}; {alternative}")
        (Path(temporary) / "unpacked").rename(folder)
    return folder


def find_file(folder: Path, pattern: str, alternative: str) -> Path:
    """The file in a folder or below it that matches a glob.

    Raises:
        FileNotFoundError: when there is none.

    """
    found = sorted(folder.rglob(pattern))
    if not found:
        raise FileNotFoundError(f"no {pattern} in {folder}; {alternative}")
    return found[0]


def _run(command: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
