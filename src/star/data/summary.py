"""What a data set holds: counts, sizes, caption lengths, a contact sheet, and what was skipped by cause."""

from __future__ import annotations

import base64
import html
import io
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

SIDES = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
RATIOS = (1.05, 1.25, 1.4, 1.6, 1.8, 2.0, 3.0, 5.0)
WORDS = (2, 3, 5, 8, 12, 20, 35, 60, 100)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
td, th { padding: .15rem .8rem; text-align: left; vertical-align: top; } td.number { text-align: right; }
.bar { background: #3b82f6; height: .8rem; }
.columns { display: flex; flex-wrap: wrap; gap: 2.5rem; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .8rem; }
figure { margin: 0; } figure img { width: 100%; image-rendering: auto; }
figcaption { font-size: .75rem; line-height: 1.3; overflow-wrap: anywhere; }
"""


@dataclass
class Histogram:
    """Counts between edges; the first bin lies below the first edge, the last from the last edge on.

    Attributes:
        edges: ascending.
        counts: one more than edges.
        total: the sum of all values.

    """

    edges: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        """Start empty."""
        self.counts = self.counts or [0] * (len(self.edges) + 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_right(self.edges, value)] += 1
        self.total += value

    def bins(self) -> dict[str, int]:
        """Counts by what a reader calls the bins."""
        below, above = [f"under {self.edges[0]:g}"], [f"{self.edges[-1]:g} and more"]
        between = [f"{low:g} to {high:g}" for low, high in zip(self.edges, self.edges[1:], strict=False)]
        return dict(zip([*below, *between, *above], self.counts, strict=True))

    @property
    def mean(self) -> float:
        """Of all values; 0 where there are none."""
        return self.total / max(sum(self.counts), 1)


@dataclass
class Summary:
    """Collected sample by sample, in constant memory.

    Attributes:
        examples: how many pictures the contact sheet shows, drawn evenly from all.
        samples: usable ones.
        bytes: of their pictures.
        shards: how many were read or written.
        skipped: how many samples can't be used, by cause.
        damaged: shards that can't be read to their end, with the cause.
        fields: in how many usable samples each caption field is.

    """

    examples: int = 60
    samples: int = 0
    bytes: int = 0
    shards: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    damaged: dict[str, str] = field(default_factory=dict)
    fields: Counter[str] = field(default_factory=Counter)
    sides: Histogram = field(default_factory=lambda: Histogram(SIDES))
    ratios: Histogram = field(default_factory=lambda: Histogram(RATIOS))
    words: Histogram = field(default_factory=lambda: Histogram(WORDS))
    shown: list[tuple[Tensor, str]] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def add(
        self,
        thumbnail: Tensor,
        captions: Sequence[str],
        *,
        size: tuple[int, int],
        num_bytes: int,
        fields: Sequence[str] = (),
    ) -> None:
        """Count a usable sample.

        Args:
            thumbnail: (3, H, W) uint8.
            captions: all of it; the first is shown.
            size: width and height of the picture in pixels.
            num_bytes: of its file.
            fields: which caption fields it has.

        """
        self.fields.update(fields)
        self.samples += 1
        self.bytes += num_bytes
        self.sides.add(min(size))
        self.ratios.add(max(size) / max(min(size), 1))
        for caption in captions:
            self.words.add(len(caption.split()))
        # every sample has the same chance to be shown, however many follow
        place = len(self.shown) if len(self.shown) < self.examples else self.rng.randrange(self.samples)
        if place < self.examples:
            self.shown[place : place + 1] = [(thumbnail, captions[0])]

    def skip(self, cause: str) -> None:
        """Count a sample that can't be used."""
        self.skipped[cause] += 1

    def facts(self) -> dict[str, Any]:
        """Everything but the pictures, for a JSON file."""
        return {
            "samples": self.samples,
            "shards": self.shards,
            "bytes": self.bytes,
            "skipped": dict(self.skipped.most_common()),
            "damaged": self.damaged,
            "caption_fields": dict(self.fields.most_common()),
            "short_side": self.sides.bins() | {"mean": round(self.sides.mean, 1)},
            "aspect_ratio": self.ratios.bins() | {"mean": round(self.ratios.mean, 3)},
            "caption_words": self.words.bins() | {"mean": round(self.words.mean, 2)},
        }

    def page(self, title: str) -> str:
        """A page that needs no other file."""
        rows = {
            "usable samples": f"{self.samples:,}",
            "skipped": f"{self.skipped.total():,}",
            "shards": f"{self.shards:,}",
            "pictures": f"{self.bytes / 2**20:,.1f} MiB",
        }
        tables = [
            _bars("Short side in pixels", self.sides.bins()),
            _bars("Long side / short side", self.ratios.bins()),
            _bars("Words of a caption", self.words.bins()),
        ]
        if len(self.fields) > 1:
            tables.append(_bars("Samples with a caption field", dict(self.fields.most_common())))
        if self.skipped:
            tables.append(_bars("Skipped, by cause", dict(self.skipped.most_common())))
        if self.damaged:
            tables.append(_table("Damaged shards", self.damaged))
        figures = "".join(_figure(thumbnail, caption) for thumbnail, caption in self.shown)
        return (
            f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>"
            f"<h1>{html.escape(title)}</h1>{_table('', rows)}<div class='columns'>{''.join(tables)}</div>"
            f"<h2>{len(self.shown)} of {self.samples:,}</h2><div class='sheet'>{figures}</div>\n"
        )


def _table(title: str, rows: Mapping[str, str]) -> str:
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in rows.items()
    )
    return f"<div><h2>{title}</h2><table>{cells}</table></div>"


def _bars(title: str, bins: Mapping[str, int]) -> str:
    largest = max([*bins.values(), 1])
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td class='number'>{count:,}</td>"
        f"<td style='width: 9rem'><div class='bar' style='width: {100 * count / largest:.0f}%'></div></td></tr>"
        for name, count in bins.items()
    )
    return f"<div><h2>{title}</h2><table>{cells}</table></div>"


def _figure(thumbnail: Tensor, caption: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(thumbnail.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    short = caption if len(caption) <= 160 else caption[:159] + "…"
    return f"<figure><img src='data:image/jpeg;base64,{data}'><figcaption>{html.escape(short)}</figcaption></figure>"
