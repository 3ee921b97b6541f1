"""Samples that can't be used: why, how often, and how many in a row are too many."""

from __future__ import annotations

from collections import Counter


class SkipSample(Exception):
    """Raised by a reading stage for a sample that can't be used.

    Args:
        stage: where it failed: `shard`, `json`, `caption`, `image`, `decode` or `filter`.
        reason: what was wrong: the name of an exception, of a field, or a word such as `missing`.

    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")

    @property
    def cause(self) -> str:
        """The short form that is counted, `decode: UnidentifiedImageError`."""
        return str(self)


class UnusableDataError(ValueError):
    """Too many samples in a row can't be used, or none at all; the message counts them by cause."""

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's error anew, with the worker's traceback in front of its message.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class SkipCounter:
    """Counts skipped samples of one source by cause.

    Args:
        source: the source's name, for the message.
        max_consecutive: how many skips in a row, without one good sample between them, are still accepted.

    """

    def __init__(self, *, source: str, max_consecutive: int) -> None:
        self.source = source
        self.max_consecutive = max_consecutive
        self._pending: Counter[str] = Counter()
        self._run: Counter[str] = Counter()

    def add(self, cause: str, where: str) -> None:
        """Count one skip; `where` is the shard or sample, for the message.

        Raises:
            UnusableDataError: after more than `max_consecutive` skips in a row, with the counts by cause.

        """
        self._pending[cause] += 1
        self._run[cause] += 1
        if self._run.total() > self.max_consecutive:
            counts = ", ".join(f"{cause} x {count}" for cause, count in self._run.most_common())
            raise UnusableDataError(
                f"source '{self.source}': {self._run.total()} samples in a row could not be used ({counts}), "
                f"last {where}; check its urls, captions and filters, "
                f"or raise data.max_consecutive_skips ({self.max_consecutive})"
            )

    def success(self) -> None:
        """A sample was good: the run of skips ends."""
        self._run.clear()

    def take(self) -> Counter[str]:
        """The skips since the last call, by cause."""
        taken, self._pending = self._pending, Counter()
        return taken
