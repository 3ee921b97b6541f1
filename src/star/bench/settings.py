"""What is measured, and how often."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from star.studies.command import count, split_arguments

KINDS = ("sample", "decode", "train", "text")
DTYPES = ("fp32", "bf16", "fp16")
IMPLEMENTATIONS = ("star", "reference", "products")


@dataclass(frozen=True)
class Settings:
    """One way of computing one thing.

    Attributes:
        kind: `sample`: text features to pixels; `decode`: f_hat to pixels; `train`: forward, loss and backward of the
            transformer; `text`: captions to features.
        batch: pictures, or captions.
        dtype: `fp32`, or what autocast computes in.
        device: `auto`, `cpu`, `cuda`, ...
        implementation: `star`: this package's; of `sample` and `train` also `reference`: by the steps of the released
            code; and `products`: the matrix products alone, a floor.
        overrides: of conf/: `model=d16`, `stage=256`, `speed=plain`, `sampling.guidance.off_after=-3`, ...

    Raises:
        ValueError: for another kind, dtype or implementation, or a `speed` where nothing is drawn.

    """

    kind: str
    batch: int = 1
    dtype: str = "fp32"
    device: str = "auto"
    implementation: str = "star"
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate."""
        if self.kind not in KINDS:
            raise ValueError(f"what to measure is one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.implementation not in IMPLEMENTATIONS:
            raise ValueError(f"implementation is one of {', '.join(IMPLEMENTATIONS)}, got {self.implementation!r}")
        if self.implementation != "star" and self.kind not in ("sample", "train"):
            raise ValueError(f"implementation={self.implementation} is known for sample and train, not for {self.kind}")
        if self.speed and self.kind in ("train", "text"):
            raise ValueError(f"{self.speed[0]} says how pictures are drawn, and {self.kind} draws none: leave it out")

    @property
    def speed(self) -> tuple[str, ...]:
        """The overrides of the group `speed`."""
        return tuple(word for word in self.overrides if word.lstrip("+").startswith("speed"))

    def changed(self, words: str) -> Settings:
        """The same with some settings replaced, written as on the command line."""
        own, rest = split_arguments(shlex.split(words), _READERS)
        return replace(self, **own, overrides=(*self.overrides, *rest))


@dataclass(frozen=True)
class Request:
    """A whole command.

    Attributes:
        first: what is measured.
        second: measured in turns with it, if anything is.
        repeats: measured repetitions of each.
        warmup: repetitions before.
        threads: of the CPU; None leaves PyTorch's number.
        format: `text` or `json`, of what is written to the terminal.
        out: JSON file to write as well.
        against: JSON file of an earlier run (or of another program that has the same fields) to compare with.

    """

    first: Settings
    second: Settings | None = None
    repeats: int = 5
    warmup: int = 1
    threads: int | None = None
    format: str = "text"
    out: Path | None = None
    against: Path | None = None


_READERS: dict[str, Callable[[str], Any]] = {"batch": count, "dtype": str, "device": str, "implementation": str}
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "repeats": count,
    "warmup": int,
    "threads": count,
    "format": str,
    "out": Path,
    "against": Path,
}


def parse(arguments: Sequence[str]) -> Request:
    """The command that the words ask for.

    Raises:
        ValueError: names what isn't understood.

    """
    if not arguments or "=" in arguments[0]:
        raise ValueError(f"say first what to measure: one of {', '.join(KINDS)}")
    own, rest = split_arguments(arguments[1:], {**_READERS, **_OPTIONS, "versus": str})
    if odd := [word for word in rest if "=" not in word]:
        raise ValueError(f"{odd[0]!r} isn't understood: write key=value")
    versus = own.pop("versus", None)
    settings = {field.name: own.pop(field.name) for field in fields(Settings) if field.name in own}
    first = Settings(arguments[0], overrides=tuple(rest), **settings)
    request = Request(first, None if versus is None else first.changed(versus), **own)
    if request.format not in ("text", "json"):
        raise ValueError(f"format is text or json, got {request.format!r}")
    if request.warmup < 0:
        raise ValueError(f"warmup can't be negative, got {request.warmup}")
    return request
