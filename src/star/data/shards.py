"""Reads one WebDataset shard: a tar file in which the files of a sample share a key."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Self

_READ_ERRORS = (OSError, EOFError, tarfile.TarError, zlib.error, ValueError)
_CHUNK = 1 << 20
_META = re.compile(r"__[^/]*__($|/)")
_TAR_NAME = re.compile(r"([^/\s'\"=]+?)(?:\.tar)(?:\.\w+)?(?=$|[\s'\"?#])")


class _Header(tarfile.TarInfo):
    """A member's header, whose damage is an error: tarfile takes one that it can't read for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a block; the zeros that end an archive are no damage, a missing end is."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error) or "a header is damaged") from error


class ShardError(Exception):
    """A shard that can't be opened, or not be read to its end; `reason` names the exception."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.reason = type(error).__name__


@dataclass(frozen=True)
class RawSample:
    """The undecoded files of one sample.

    Attributes:
        key: what the shard calls the sample.
        files: lower-case extension -> content.

    """

    key: str
    files: Mapping[str, bytes]


def shard_name(url: str) -> str:
    """The short name of a shard, `00012` for `s3://bucket/laion/00012.tar` and for any pipe that reads it."""
    names = _TAR_NAME.findall(url)
    return names[-1] if names else url.rsplit("/", 1)[-1]


def read_shard(url: str) -> Iterator[RawSample]:
    """All samples of a shard in their order; of a damaged shard, those before the damage.

    Args:
        url: a local path, `pipe:COMMAND`, or any address that webdataset can open.

    Raises:
        ShardError: at the damage, or in the beginning if the shard can't be opened.

    """
    from webdataset.tariterators import group_by_keys

    failures: list[Exception] = []

    def note(error: Exception) -> bool:
        """A name that occurs twice in a sample is a failure of the shard, but reading goes on."""
        failures.append(error)
        return True

    for sample in group_by_keys(_read_files(url, failures), handler=note):
        yield RawSample(sample["__key__"], {name: data for name, data in sample.items() if not name.startswith("__")})
    if failures:
        raise ShardError(failures[0]) from failures[0]


def _read_files(url: str, failures: list[Exception]) -> Iterator[dict[str, Any]]:
    """The files of a tar in webdataset's form; a failure is noted and ends them, so that what came before it counts."""
    try:
        with _open(url) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # a shard's headers aren't needed twice
                if member.isreg() and not _META.match(member.name):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield {"fname": member.name, "data": content.read(), "__url__": url}
    except _READ_ERRORS as error:
        failures.append(error)


@contextmanager
def _open(url: str) -> Iterator[IO[bytes]]:
    """Open a shard; a command that failed is an OSError, but not before all that it gave was read."""
    from webdataset.gopen import gopen, set_options

    stream = gopen(url)
    # Otherwise reading raises, and drops what it read, as soon as the command has ended badly.
    set_options(stream, ignore_errors=True)
    try:
        try:
            yield stream
        except tarfile.TarError:
            # When a download fails the tar ends early: the command's own status says more than the tar does.
            _finish(stream, url)
            raise
        _finish(stream, url)
    finally:
        stream.close()


def _finish(stream: IO[bytes], url: str) -> None:
    """Read to the end, lest the command behind a pipe dies of a closed pipe, and raise if it failed."""
    while stream.read(_CHUNK):
        pass
    stream.close()
    status = getattr(stream, "status", 0)
    if status not in getattr(stream, "ignore_status", [0]):
        raise OSError(f"{url} ended with status {status}")
