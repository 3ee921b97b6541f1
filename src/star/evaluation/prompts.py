"""The prompts of a protocol, and the pictures that are to be drawn for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from star.drawing import Request
from star.sampling.prompts import read_prompts
from star.utils.seed import derive

Record = Mapping[str, Any]

LAYOUTS = ("flat", "geneval", "named")
SEED_BITS = 32


@dataclass(frozen=True)
class PromptSet:
    """Prompts in their order, with everything that decides which pictures belong to them.

    Attributes:
        name: of the set.
        records: each with `prompt`, `index` (its place), and what a metric wants to know of it: tag, category, ...
            `stem` names its file in the layout `named`.
        num_images: pictures per prompt.
        seed: the protocol's; each prompt has a seed derived from it and from its index.
        layout: `flat` (00000.png), `geneval` (00000/samples/00000.png) or `named` (STEM.png, STEM_0.png ...).
        same_seed: give every prompt the protocol's seed itself, as some published scripts do.

    Raises:
        ValueError: for no prompts, fewer than one image, or an unknown layout.

    """

    name: str
    records: tuple[Record, ...]
    num_images: int = 1
    seed: int = 0
    layout: str = "flat"
    same_seed: bool = False

    def __post_init__(self) -> None:
        """Check."""
        if not self.records or self.num_images < 1:
            raise ValueError(
                f"{self.name}: at least one prompt and one image each, got {len(self.records)} and {self.num_images}"
            )
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout is one of {', '.join(LAYOUTS)}, got {self.layout!r}")

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.records) * self.num_images

    def iterate_missing(self) -> Iterator[str]:
        """Nothing: a set is a source of itself."""
        return iter(())

    def load(self) -> PromptSet:
        """The set itself."""
        return self

    def requests(self) -> list[Request]:
        """Every picture; its metadata is the prompt's record with its number `image`, its `file` and its `place`."""
        requests: list[Request] = []
        for record in self.records:
            first = self.seed if self.same_seed else derive(self.seed, record["index"]) % 2**SEED_BITS
            for j in range(self.num_images):
                file = self._file(record, j)
                metadata = {**record, "image": j, "file": file, "place": len(requests)}
                requests.append(Request(record["prompt"], first + j, file, metadata))
        return requests

    def fingerprint(self) -> str:
        """Sixteen digits that name prompts, counts and seeds."""
        text = json.dumps([[request.prompt, request.seed, request.file] for request in self.requests()])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _file(self, record: Record, j: int) -> str:
        if self.layout == "geneval":
            return f"{record['index']:05d}/samples/{j:05d}.png"
        if self.layout == "named":
            return f"{record['stem']}.png" if self.num_images == 1 else f"{record['stem']}_{j}.png"
        return f"{record['index'] * self.num_images + j:05d}.png"


@dataclass(frozen=True)
class PromptFile:
    """Captions of a file, as sample.py reads them: one a line, or JSON lines with a `prompt`.

    Attributes:
        file: the path.
        num_images: pictures per caption.
        seed: of the noise.

    """

    file: str
    num_images: int = 1
    seed: int = 0

    def iterate_missing(self) -> Iterator[str]:
        """The file, if it can't be read."""
        try:
            read_prompts(self.file)
        except (OSError, ValueError) as error:
            yield str(error)

    def load(self) -> PromptSet:
        """Its prompts."""
        records = tuple({**record, "index": i} for i, record in enumerate(read_prompts(self.file)))
        return PromptSet("prompts", records, num_images=self.num_images, seed=self.seed)


class PromptSource(Protocol):
    """Where a protocol's prompts come from."""

    def iterate_missing(self) -> Iterator[str]:
        """What isn't there, one sentence each."""
        ...

    def load(self) -> PromptSet:
        """The prompts."""
        ...
