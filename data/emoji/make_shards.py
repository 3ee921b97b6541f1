"""Packs Debian's emoji font, with names and keywords as captions, into shards: `python data/emoji/make_shards.py`.

Options are written as `name=value`; see the README beside this file.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import logging
import random
import shutil
import sys
import tarfile
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalogue import VARIATION_SELECTOR, Emoji, captions, held_out, read_emoji, read_keywords
from debian import fetch_package, find_file
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image, ImageDraw, ImageFont, features
from rich.progress import track

from star.utils.cli import readable_errors

logger = logging.getLogger("emoji")
WRITTEN = {"train", "validation", "summary.json", "contact_sheet.png"}


@dataclass
class Options:
    """The settings of the recipe.

    Attributes:
        out: gets `train/`, `validation/`, `summary.json` and `contact_sheet.png`; holds nothing else, and is replaced.
        font: an emoji font file with bitmaps; null fetches Debian's fonts-noto-color-emoji.
        emoji: a folder with Unicode's emoji-test.txt; null fetches Debian's unicode-data.
        keywords: a folder with CLDR's annotations/en.xml; null fetches Debian's unicode-cldr-core.
        cache: where fetched packages are kept.
        bitmap_size: the font's own size; Noto Color Emoji has one, 109.
        trim: cut each picture to what is drawn, so that sizes and shapes vary.
        shard_size: pairs in a shard.
        validation_percent: how many families of emoji, in percent, are held out.
        seed: of the order in the shards.

    """

    out: str = "outputs/data/emoji"
    font: str | None = None
    emoji: str | None = None
    keywords: str | None = None
    cache: str = "outputs/data/debian"
    bitmap_size: int = 109
    trim: bool = False
    shard_size: int = 1000
    validation_percent: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Pair:
    """A drawn emoji: PNG bytes, its size in pixels, and its captions, best first."""

    emoji: Emoji
    png: bytes
    size: tuple[int, int]
    captions: list[str]


class UndrawableError(Exception):
    """The font has no picture for an emoji; the message is the cause that is counted."""


class Painter:
    """Draws emoji as the font's own bitmaps on a transparent ground.

    Args:
        font: a font file with colour bitmaps.
        size: of its bitmaps.
        trim: cut to what is drawn.

    """

    def __init__(self, font: Path, *, size: int, trim: bool) -> None:
        # Raqm joins the characters of a sequence (flags, families, skin tones) to one picture.
        self.joins = bool(features.check("raqm"))
        self.font = ImageFont.truetype(str(font), size)
        self.trim = trim
        self.advance = self.font.getlength("\U0001f600")

    def draw(self, text: str) -> Image.Image:
        """One emoji as RGBA.

        Raises:
            UndrawableError: when the font, or Pillow without libraqm, can't draw it as one picture.

        """
        if not self.joins and len(text := text.replace(VARIATION_SELECTOR, "")) > 1:
            raise UndrawableError("glyph: sequences need libraqm (Pillow's text layout)")
        left, top, right, bottom = (int(edge) for edge in self.font.getbbox(text))
        if bottom <= top or right <= left:
            raise UndrawableError("glyph: not in the font")
        if self.font.getlength(text) > 1.5 * self.advance:
            raise UndrawableError("glyph: sequence not in the font")
        image = Image.new("RGBA", (right - left, bottom - top), (255, 255, 255, 0))
        ImageDraw.Draw(image).text((-left, -top), text, font=self.font, embedded_color=True)
        drawn = image.getchannel("A").getbbox()
        if drawn is None:
            raise UndrawableError("glyph: nothing drawn")
        return image.crop(drawn) if self.trim else image


def draw_all(
    emoji: Sequence[Emoji], painter: Painter, keywords: Mapping[str, Sequence[str]]
) -> tuple[list[Pair], Counter]:
    """All drawable emoji as pairs, and how many were skipped by cause."""
    pairs, skipped = [], Counter[str]()
    for one in track(emoji, description="drawing emoji"):
        try:
            image = painter.draw(one.text)
        except UndrawableError as error:
            skipped[str(error)] += 1
            continue
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        pairs.append(Pair(one, buffer.getvalue(), image.size, captions(one, keywords)))
    return pairs, skipped


def split(pairs: Sequence[Pair], percent: int) -> dict[str, list[Pair]]:
    """Training and validation pairs; families stay together, and so do emoji that look exactly alike."""
    sides: dict[str, list[Pair]] = {"train": [], "validation": []}
    first_family: dict[str, str] = {}
    for pair in pairs:
        family = first_family.setdefault(hashlib.sha256(pair.png).hexdigest(), pair.emoji.family)
        sides["validation" if held_out(family, percent) else "train"].append(pair)
    return sides


def write_shards(pairs: Sequence[Pair], folder: Path, shard_size: int) -> int:
    """Write shards as img2dataset does (`00000.tar`, key.png, key.json, key.txt) and return how many."""
    folder.mkdir(parents=True)
    starts = range(0, len(pairs), shard_size)
    for shard, start in enumerate(starts):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number, pair in enumerate(pairs[start : start + shard_size]):
                for name, data in _files(f"{shard:05d}{number:04d}", pair):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return len(starts)


def _files(key: str, pair: Pair) -> Iterator[tuple[str, bytes]]:
    metadata = {
        "key": key,
        "caption": pair.captions[0],
        "captions": pair.captions,
        "width": pair.size[0],
        "height": pair.size[1],
        "emoji": pair.emoji.text,
        "group": pair.emoji.group,
        "subgroup": pair.emoji.subgroup,
        "family": pair.emoji.family,
        "skin_tones": pair.emoji.skin_tones,
    }
    yield f"{key}.png", pair.png
    yield f"{key}.json", json.dumps(metadata).encode()
    yield f"{key}.txt", pair.captions[0].encode()


def contact_sheet(pairs: Sequence[Pair], columns: int = 12, rows: int = 6, cell: int = 150) -> Image.Image:
    """The first pairs on a grey ground (their own is transparent), each with its first caption."""
    sheet = Image.new("RGB", (columns * cell, rows * (cell + 30)), (225, 225, 225))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, pair in enumerate(pairs[: columns * rows]):
        left, top = place % columns * cell, place // columns * (cell + 30)
        image = Image.open(io.BytesIO(pair.png))
        sheet.paste(image, (left + (cell - image.width) // 2, top + 5), image)
        lines = textwrap.wrap(pair.captions[0], 23)[:2]
        pen.multiline_text((left + 4, top + 135), "\n".join(lines), fill=(0, 0, 0), font=font, spacing=1)
    return sheet


def summarise(
    sides: Mapping[str, Sequence[Pair]], skipped: Mapping[str, int], num_shards: Mapping[str, int]
) -> dict[str, Any]:
    """Counts of what was packed."""
    everything = [pair for pairs in sides.values() for pair in pairs]
    looks = {side: {hashlib.sha256(pair.png).hexdigest() for pair in pairs} for side, pairs in sides.items()}
    return {
        "pairs": {side: len(pairs) for side, pairs in sides.items()},
        "shards": dict(num_shards),
        "families": {side: len({pair.emoji.family for pair in pairs}) for side, pairs in sides.items()},
        "captions": sum(len(pair.captions) for pair in everything),
        "different_pictures": len(set().union(*looks.values())),
        "pictures_on_both_sides": len(looks["train"] & looks["validation"]),
        "sizes": len({pair.size for pair in everything}),
        "groups": dict(Counter(pair.emoji.group for pair in everything)),
        "skipped": dict(skipped),
    }


def find_inputs(options: Options) -> tuple[Path, Path, list[Path]]:
    """The font, Unicode's list of emoji, and CLDR's English keywords; fetched where no option names them."""
    cache = Path(options.cache)
    hint = "give the font file with font=PATH"
    font = Path(options.font) if options.font else None
    if font is None:
        font = find_file(fetch_package("fonts-noto-color-emoji", cache, hint), "NotoColorEmoji.ttf", hint)
    elif not font.is_file():
        raise FileNotFoundError(f"font={font} is no file")
    hint = "give a folder with Unicode's emoji-test.txt with emoji=FOLDER"
    folder = Path(options.emoji) if options.emoji else fetch_package("unicode-data", cache, hint)
    emoji = find_file(folder, "emoji-test.txt", hint)
    hint = "give a folder with CLDR's annotations/en.xml with keywords=FOLDER"
    folder = Path(options.keywords) if options.keywords else fetch_package("unicode-cldr-core", cache, hint)
    annotations = find_file(folder, "annotations/en.xml", hint)
    return font, emoji, [annotations, *sorted(folder.rglob("annotationsDerived/en.xml"))]


def refuse_foreign(out: Path) -> None:
    """Raise a ValueError for a folder with anything that the recipe didn't write: it will be replaced as a whole."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out} is no folder")
    others = [path for path in sorted(out.glob("*")) if path.name not in WRITTEN]
    if others:
        raise ValueError(f"out={out} would be replaced as a whole, but holds {others[0].name}: choose another out=")


def make_shards(options: Options) -> dict[str, Any]:
    """Run the recipe and return its summary; an interrupted run leaves an earlier result as it was."""
    out = Path(options.out)
    refuse_foreign(out)
    if options.shard_size < 1 or not 0 <= options.validation_percent < 100:
        raise ValueError(
            "shard_size is at least 1 and validation_percent lies between 0 and 99, got "
            f"{options.shard_size} and {options.validation_percent}"
        )
    font, emoji, annotations = find_inputs(options)
    painter = Painter(font, size=options.bitmap_size, trim=options.trim)
    pairs, skipped = draw_all(read_emoji(emoji), painter, read_keywords(annotations))
    if not pairs:
        raise ValueError(f"{font} has no picture of any emoji: {dict(skipped)}")
    sides = split(pairs, options.validation_percent)
    partial = Path(f"{options.out}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    num_shards = {}
    for side, chosen in sides.items():
        random.Random(options.seed).shuffle(chosen)
        num_shards[side] = write_shards(chosen, partial / side, options.shard_size)
    summary = summarise(sides, skipped, num_shards)
    (partial / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    contact_sheet(sides["train"]).save(partial / "contact_sheet.png")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return summary


def explanation() -> str:
    """What --help says: each option with its meaning and default."""
    lines = (inspect.getdoc(Options) or "").partition("Attributes:")[2].strip().splitlines()
    options = (line.strip().partition(": ") for line in lines)
    told = "".join(f"  {name}={getattr(Options, name)}  {meaning}\n" for name, _, meaning in options)
    return f"{(__doc__ or '').splitlines()[0]}\n\nOptions, and what they are unless given:\n{told}"


def main(arguments: Sequence[str]) -> int:
    """Read the options, run, report; 1 when something is missing or wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(explanation())
        return 0
    try:
        options = OmegaConf.merge(OmegaConf.structured(Options), OmegaConf.from_cli(list(arguments)))
        summary = make_shards(OmegaConf.to_object(options))  # type: ignore[arg-type]
    except (FileNotFoundError, ValueError, OmegaConfBaseException) as error:
        logger.error("%s", error)
        return 1
    logger.info("%s", json.dumps(summary, indent=2))
    logger.info("wrote %s; train on it with data=emoji", options.out)
    return 0


if __name__ == "__main__":
    with readable_errors():
        sys.exit(main(sys.argv[1:]))
