"""The `shapes` data set: drawn scenes with captions, written as WebDataset shards.

Run `python -m star.data.shapes --help` for the command.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from star.data.shapes_captions import TAGS, WEIGHTS, Facts, check_weights, draw_colors, draw_facts
from star.data.shapes_help import HELP
from star.figures import Scene, arrange, draw, held_out_by
from star.utils.workers import in_processes

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "heldout")
_FORMAT = 1  # raise it when the same settings draw other images
_REDRAWS = 200


@dataclass(frozen=True)
class ShapesSettings:
    """What is drawn; the same settings always give the same files.

    Attributes:
        num_images: how many.
        size: side of the square images in pixels.
        split: `train` and `validation` hold nothing that is held out, `heldout` nothing else.
        seed: another seed, other images; the splits differ even with equal seeds.
        samples_per_shard: how many images a tar file holds, at most 10,000.
        captions_per_image: wordings of each image's facts in its json, drawn independently; the first is its caption.
        exact: how often a wording is that of the evaluation suites; the others say the same more freely.
        weights: how often each kind of caption is drawn, relative to the others.

    Raises:
        ValueError: for a value out of range.

    """

    num_images: int
    size: int = 64
    split: str = "train"
    seed: int = 0
    samples_per_shard: int = 1024
    captions_per_image: int = 4
    exact: float = 0.5
    weights: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_images", "size", "samples_per_shard", "captions_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}, use one of {', '.join(SPLITS)}")
        if self.samples_per_shard > 10_000:
            raise ValueError(f"keys have four digits a shard: samples_per_shard <= 10000, got {self.samples_per_shard}")
        if self.seed < 0 or not 0 <= self.exact <= 1:
            raise ValueError(f"seed can't be negative and exact is a share, got seed={self.seed}, exact={self.exact}")
        check_weights(self.weights)

    @property
    def num_shards(self) -> int:
        """How many tar files."""
        return -(-self.num_images // self.samples_per_shard)


@dataclass(frozen=True)
class Sample:
    """A scene, what is said of it, and wordings of that."""

    scene: Scene
    facts: Facts
    captions: tuple[str, ...]

    def record(self, *, key: str, size: int) -> dict[str, Any]:
        """What a shard's json says about it."""
        return {
            "key": key,
            "status": "success",
            "caption": self.captions[0],
            "captions": list(self.captions),
            "width": size,
            "height": size,
            **self.facts.metadata(),
            "background": list(self.scene.background),
            "objects": [asdict(figure) for figure in self.scene.figures],
        }


def draw_sample(settings: ShapesSettings, index: int) -> Sample:
    """Image `index` of a data set; it depends on nothing but its settings and its index."""
    rng = np.random.default_rng((SPLITS.index(settings.split), settings.seed, index))
    shares = np.array([settings.weights.get(tag, 0.0) for tag in TAGS])
    tag = TAGS[rng.choice(len(TAGS), p=shares / shares.sum())]
    facts, pairs = _draw_colored(tag, settings.split == "heldout", rng)
    scene = arrange(pairs, rng, ((1, facts.relation, 0),) if facts.relation else ())
    captions = [
        facts.exactly() if rng.random() < settings.exact else facts.freely(rng)
        for _ in range(settings.captions_per_image)
    ]
    return Sample(scene, facts, tuple(captions))


def write_shards(
    out: str | Path, settings: ShapesSettings, *, workers: int = 2, overwrite: bool = False, progress: bool = True
) -> list[Path]:
    """Write a data set as WebDataset tars in img2dataset's layout: `00000.tar` with key.png, key.txt and key.json.

    Finished shards of the same settings are kept, so an interrupted run goes on where it stopped.

    Args:
        out: the folder; it is made if need be.
        settings: what to draw; recorded in the folder's `dataset.json`.
        workers: processes that draw; their number changes nothing in the files.
        overwrite: replace what other settings wrote into the same folder.
        progress: show a progress bar.

    Returns:
        The shards, in order.

    Raises:
        ValueError: when the folder holds shards of other settings or of another origin.

    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, settings, overwrite=overwrite)
    shards = [out / f"{number:05d}.tar" for number in range(settings.num_shards)]
    missing = [number for number, shard in enumerate(shards) if not shard.exists()]
    with _progress_bar(len(missing), shown=progress) as advance:
        if workers == 1 or len(missing) == 1:
            for number in missing:
                _write_shard(shards[number], settings, number)
                advance()
        else:
            tasks = [(shards[number], settings, number) for number in missing]
            for _ in in_processes(_write_shard, tasks, min(workers, len(missing) or 1)):
                advance()
    logger.info("%d images in %d shards (%d new) in %s", settings.num_images, len(shards), len(missing), out)
    return shards


def _draw_colored(tag: str, held_out: bool, rng: np.random.Generator) -> tuple[Facts, list[tuple[str, str]]]:
    """Facts with colours that are, or are not, kept out of training."""
    wanted = ("pair", "set")[rng.integers(2)] if held_out else None
    if wanted == "set" and tag in ("single_object", "colors", "color_counting"):
        wanted = "pair"  # one kind of figure is no set
    while True:
        facts = draw_facts(tag, rng)
        for _ in range(_REDRAWS):
            colored, pairs = draw_colors(facts, rng)
            if held_out_by(pairs) == wanted:
                return colored, pairs


def _write_shard(path: Path, settings: ShapesSettings, number: int) -> None:
    first = number * settings.samples_per_shard
    last = min(first + settings.samples_per_shard, settings.num_images)
    partial = path.with_suffix(".tar.tmp")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in range(first, last):
            sample = draw_sample(settings, index)
            key = f"{number:05d}{index - first:04d}"
            _add(tar, f"{key}.png", _png(draw(sample.scene, settings.size)))
            _add(tar, f"{key}.txt", sample.captions[0].encode())
            _add(tar, f"{key}.json", json.dumps(sample.record(key=key, size=settings.size)).encode())
    partial.replace(path)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)  # its time stays 0, so that equal settings give equal bytes
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _claim(out: Path, settings: ShapesSettings, *, overwrite: bool) -> None:
    """Record the settings in the folder, or make sure that what lies there was drawn with them."""
    record = {"name": "shapes", "format": _FORMAT, **asdict(settings)}
    path = out / "dataset.json"
    there = json.loads(path.read_text()) if path.exists() else {}
    shards = sorted(file for file in out.iterdir() if re.fullmatch(r"\d{5}\.tar(\.tmp)?", file.name))
    if there == record:
        return
    if (there or shards) and not overwrite:
        changed = sorted(key for key in record | there if record.get(key) != there.get(key))
        raise ValueError(
            f"{out} holds a data set of other settings (different: {', '.join(changed)}); "
            "choose another folder or pass overwrite=true"
        )
    for shard in shards:
        shard.unlink()
    partial = path.with_suffix(".json.tmp")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)


@contextmanager
def _progress_bar(total: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    from rich.progress import Progress

    with Progress(disable=not shown) as bar:
        task = bar.add_task("drawing shards", total=total)
        yield lambda: bar.advance(task)


def parse_arguments(arguments: Sequence[str]) -> tuple[Path, ShapesSettings, dict[str, Any]]:
    """Turn `key=value` words into a folder, settings, and the other arguments of `write_shards`.

    Raises:
        ValueError: for an unknown key, a value of the wrong kind, or a missing `out` or `num_images`.

    """
    settings = {entry.name: entry.type for entry in fields(ShapesSettings) if entry.name != "weights"}
    readers: dict[str, Callable[[str], Any]] = {
        "out": Path,
        "workers": int,
        "overwrite": _boolean,
        "progress": _boolean,
    }
    readers |= {name: {"int": int, "float": float, "str": str}[str(kind)] for name, kind in settings.items()}
    readers |= {f"weights.{tag}": float for tag in TAGS}
    values: dict[str, Any] = {}
    for word in arguments:
        key, equals, text = word.partition("=")
        if not equals or key not in readers:
            raise ValueError(f"unknown argument {word!r}; write key=value with one of {', '.join(readers)}")
        try:
            values[key] = readers[key](text)
        except ValueError as error:
            raise ValueError(f"{key}={text} can't be read: {error}") from error
    if missing := [key for key in ("out", "num_images") if key not in values]:
        raise ValueError(f"missing {' and '.join(f'{key}=...' for key in missing)}")
    weights = WEIGHTS | {tag: values[f"weights.{tag}"] for tag in TAGS if f"weights.{tag}" in values}
    chosen = ShapesSettings(weights=weights, **{key: values[key] for key in settings if key in values})
    return values["out"], chosen, {key: values[key] for key in ("workers", "overwrite", "progress") if key in values}


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("use true or false")
    return text.lower() == "true"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `python -m star.data.shapes out=FOLDER num_images=N ...`."""
    parser = argparse.ArgumentParser(
        prog="python -m star.data.shapes",
        description=HELP,
        usage="python -m star.data.shapes out=FOLDER num_images=N [key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("arguments", nargs="*", metavar="key=value", help=argparse.SUPPRESS)
    try:
        out, settings, others = parse_arguments(parser.parse_args(arguments).arguments)
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        write_shards(out, settings, **others)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    from star.utils.cli import readable_errors  # here, as the processes that draw begin by reading this file

    with readable_errors():
        main()
