"""Published prompt sets and reference pictures: where they are looked for, and what is said when they aren't there."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from star.evaluation.pictures import Picture
from star.evaluation.prompts import PromptSet
from star.metrics.assets import ENVIRONMENT
from star.metrics.json_lines import read_json

MJHQ_CATEGORIES = ("animals", "art", "fashion", "food", "indoor", "landscape", "logo", "people", "plants", "vehicles")
_MJHQ_COUNT = 3000
_MJHQ_SUFFIXES = (".jpg", ".png")


class DatasetFolder:
    """A folder that holds a published data set.

    Args:
        root: the folder; None looks in `$STAR_ASSETS/NAME`.
        name: of the folder there.
        key: the configuration key of `root`, for messages.

    """

    def __init__(self, root: str | Path | None, *, name: str, key: str) -> None:
        self.given = root
        self.name = name
        self.key = key

    @property
    def root(self) -> Path:
        """Where it is looked for."""
        if self.given is not None:
            return Path(self.given).expanduser()
        return Path(os.environ.get(ENVIRONMENT, f"${ENVIRONMENT}")).expanduser() / self.name

    def incomplete(self, what: str, names: Sequence[str], source: str) -> Iterator[str]:
        """What is said about files that a folder lacks, as after an archive was unpacked in part."""
        if names:
            yield self.message(f"{what} ({len(names)} of them, e.g. {names[0]})", source)

    def message(self, what: str, source: str) -> str:
        """One sentence about what isn't there."""
        return (
            f"{what} not found in {self.root}. Get it from {source} and set {self.key}=FOLDER, or put it into "
            f"${ENVIRONMENT}/{self.name} (${ENVIRONMENT} is {os.environ.get(ENVIRONMENT, 'unset')}). "
            "No sha256 is published for it; the card records what was used."
        )


class COCO(DatasetFolder):
    """30,000 captions of COCO's validation pictures of 2014, each of another picture.

    Args:
        root: the folder with `annotations/captions_val2014.json` and `val2014/`.
        num_prompts: how many; drawn with a fixed seed from the first caption of every picture.
        seed: of the noise the pictures are drawn from.

    """

    source = "https://cocodataset.org (val2014.zip and annotations_trainval2014.zip, unpacked)"

    def __init__(self, root: str | Path | None = None, *, num_prompts: int = 30_000, seed: int = 0) -> None:
        super().__init__(root, name="coco", key="paths.coco")
        self.num_prompts = num_prompts
        self.seed = seed

    def iterate_missing(self) -> Iterator[str]:
        """The captions."""
        if not self._captions.is_file():
            yield self.message("COCO's annotations/captions_val2014.json", self.source)

    def reference_missing(self) -> Iterator[str]:
        """The pictures."""
        if not (self.root / "val2014").is_dir():
            yield self.message("COCO's pictures val2014/", self.source)
        elif self._captions.is_file():
            there = set(os.listdir(self.root / "val2014"))
            lacking = [record["picture"] for record in self.load().records if record["picture"] not in there]
            yield from self.incomplete("COCO's pictures val2014/", lacking, self.source)

    def load(self) -> PromptSet:
        """The captions, sorted by picture."""
        if not self._captions.is_file():
            raise FileNotFoundError(next(self.iterate_missing()))
        content = read_json(self._captions)
        first: dict[int, str] = {}
        try:
            names = {image["id"]: image["file_name"] for image in content["images"]}
            for entry in sorted(content["annotations"], key=lambda entry: entry["id"]):
                first.setdefault(entry["image_id"], entry["caption"].strip())
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self._captions} isn't COCO's file of captions ({error!r})") from error
        ids = sorted(first)
        chosen = sorted(random.Random(0).sample(ids, min(self.num_prompts, len(ids))))
        records = [{"prompt": first[key], "index": i, "picture": names[key]} for i, key in enumerate(chosen)]
        return PromptSet("coco", tuple(records), seed=self.seed)

    def reference(self) -> Iterator[Picture]:
        """The real pictures of the same captions."""
        for record in self.load().records:
            yield Picture(str(self.root / "val2014" / record["picture"]), record)

    @property
    def _captions(self) -> Path:
        return self.root / "annotations" / "captions_val2014.json"


class MJHQ(DatasetFolder):
    """MJHQ-30K: 30,000 prompts in ten categories, one real picture each (Playground v2).

    Args:
        root: the folder with `meta_data.json` and the pictures as CATEGORY/ID.jpg, or below `data_meta/`.
        per_category: take so many of each category's 3,000, ids sorted, drawn with a fixed seed; None takes all.
        seed: of the noise the pictures are drawn from.

    """

    source = "https://huggingface.co/datasets/playgroundai/MJHQ-30K (meta_data.json and mjhq30k_imgs.zip, unpacked)"

    def __init__(self, root: str | Path | None = None, *, per_category: int | None = None, seed: int = 4) -> None:
        super().__init__(root, name="mjhq30k", key="paths.mjhq")
        if per_category is not None and not 1 <= per_category <= _MJHQ_COUNT:
            raise ValueError(f"MJHQ-30K has {_MJHQ_COUNT} pictures a category, got per_category={per_category}")
        self.per_category = per_category
        self.seed = seed

    def iterate_missing(self) -> Iterator[str]:
        """The prompts."""
        if self._metadata is None:
            yield self.message("MJHQ-30K's meta_data.json (30,000 prompts)", self.source)

    def reference_missing(self) -> Iterator[str]:
        """The real pictures: the folders of all categories."""
        lacking = [name for name in MJHQ_CATEGORIES if not (self._pictures / name).is_dir()]
        if lacking:
            yield self.message(f"MJHQ-30K's pictures of {', '.join(lacking)}", self.source)
        elif self._metadata is not None:
            listed = ((name, os.path.splitext(file)) for name in MJHQ_CATEGORIES for file in self._listed(name))
            there = {f"{name}/{stem}" for name, (stem, suffix) in listed if suffix in _MJHQ_SUFFIXES}
            absent = [f"{record['stem']}.jpg" for record in self.load().records if record["stem"] not in there]
            yield from self.incomplete("MJHQ-30K's pictures", absent, self.source)

    def load(self) -> PromptSet:
        """The prompts in the order of the file, or the fixed subset by category."""
        if self._metadata is None:
            raise FileNotFoundError(next(self.iterate_missing()))
        entries = read_json(self._metadata)
        if not isinstance(entries, dict):
            raise ValueError(f"{self._metadata} holds no entries by id but a {type(entries).__name__}")
        chosen = list(entries) if self.per_category is None else self._subset(entries)
        records = [self._record(index, key, entries[key]) for index, key in enumerate(chosen)]
        return PromptSet("mjhq", tuple(records), seed=self.seed, layout="named")

    def reference(self) -> Iterator[Picture]:
        """The real pictures of the same prompts."""
        for record in self.load().records:
            found = [self._pictures / f"{record['stem']}{suffix}" for suffix in _MJHQ_SUFFIXES]
            yield Picture(str(next((path for path in found if path.is_file()), found[0])), record)

    @property
    def categories(self) -> tuple[str, ...]:
        """Their names."""
        return MJHQ_CATEGORIES

    @property
    def _metadata(self) -> Path | None:
        names = ("meta_data.json", "meta_mjhq.json")
        return next((self.root / name for name in names if (self.root / name).is_file()), None)

    @property
    def _pictures(self) -> Path:
        below = [self.root / name for name in ("data_meta", "mjhq30k_imgs")]
        return next((folder for folder in below if folder.is_dir()), self.root)

    def _subset(self, entries: Mapping[str, Any]) -> list[str]:
        """`per_category` ids of each category: the authors' own subset depends on a hash seed nobody knows."""
        chosen: list[str] = []
        for name in MJHQ_CATEGORIES:
            ids = sorted(key for key, entry in entries.items() if self._field(key, entry, "category") == name)
            chosen += random.Random(42).sample(ids, min(self.per_category or len(ids), len(ids)))
        return chosen

    def _listed(self, category: str) -> list[str]:
        return os.listdir(self._pictures / category)

    def _field(self, key: str, entry: Mapping[str, Any], name: str) -> str:
        if not isinstance(entry, Mapping) or name not in entry:
            raise ValueError(f"{self._metadata}: entry {key!r} has no {name}")
        return str(entry[name])

    def _record(self, index: int, key: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        category, prompt = self._field(key, entry, "category"), self._field(key, entry, "prompt")
        if category not in MJHQ_CATEGORIES or "/" in key or ".." in key:
            raise ValueError(f"{self._metadata}: entry {key!r} has an unknown category {category!r} or no plain id")
        return {"prompt": prompt, "index": index, "category": category, "stem": f"{category}/{key}"}
