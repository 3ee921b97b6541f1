"""What the metrics of one command share: the model, the pictures it drew, the processes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from star.checkpoints import io
from star.checkpoints.fingerprint import fingerprint
from star.checkpoints.named import locate_named
from star.checkpoints.parts import WITH_GENERATOR
from star.checkpoints.presets import merge_preset, resolve_sampling
from star.data.sources import expand_urls
from star.drawing import check_source, claim, draw, open_pipeline, refined_by
from star.evaluation.pictures import Picture, match
from star.evaluation.prompts import PromptFile, PromptSet, PromptSource
from star.evaluation.ranks import Ranks
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.pipeline import STARPipeline
from star.sampling.order import at_least_1
from star.sampling.precision import autocast, chosen_precision
from star.schedule import ScaleSchedule
from star.utils.devices import choose_device
from star.utils.instantiate import instantiate_trusted

log = logging.getLogger(__name__)

SHARED = Path("outputs") / "evaluation"


@dataclass(frozen=True)
class Drawn:
    """Pictures of a prompt set.

    Attributes:
        folder: where they are.
        pictures: one per request, in order.
        sampling: the preset that drew them; None when somebody else did.

    """

    folder: Path
    pictures: list[Picture]
    sampling: Mapping[str, Any] | None = None

    def facts(self) -> dict[str, Any]:
        """For the card."""
        return {"pictures": str(self.folder), "sampling": self.sampling}


@dataclass(frozen=True)
class Followed:
    """The metric whose pictures others score, too.

    Attributes:
        prompts: what it draws.
        sampling: its preset.
        dataset: has the real pictures of its prompts; None when nobody has.

    """

    prompts: PromptSource
    sampling: Mapping[str, Any] | None = None
    dataset: Any | None = None


class Context:
    """The model and its pictures, opened when first needed.

    Args:
        config: the resolved evaluate.yaml.
        ranks: the processes.

    """

    def __init__(self, config: Mapping[str, Any], ranks: Ranks | None = None) -> None:
        self.device = choose_device(config["device"])
        self.config = {**config, "precision": chosen_precision(config["precision"], self.device)}
        self.ranks = ranks or Ranks()
        self.followed: Followed | None = None
        self._drawn: dict[str, Drawn] = {}

    def follow(self, items: Iterable[Any]) -> None:
        """Let metrics without prompts of their own score the pictures of the first that has some."""
        leader = next((item for item in items if getattr(item, "prompts", None) is not None), None)
        if leader is not None:
            reference = getattr(leader, "reference", None)
            self.followed = Followed(leader.prompts, leader.sampling, getattr(reference, "dataset", None))

    @property
    def prompt_file(self) -> PromptFile | None:
        """The file `prompts=`."""
        return None if self.config["prompts"] is None else PromptFile(self.config["prompts"], self.config["num_images"])

    @property
    def images(self) -> Path | None:
        """The folder (or shards) `images=`, which somebody else filled."""
        return None if self.config["images"] is None else Path(self.config["images"])

    @property
    def are_shards(self) -> bool:
        """Whether `images=` names shards, or a folder of shards."""
        if self.images is None or not self.images.is_dir():
            return self.images is not None and self.images.suffix == ".tar"
        return any(self.images.glob("*.tar"))

    @property
    def store(self) -> Path:
        """Where drawn pictures are kept, each set in a folder of its own."""
        if self.config["paths"]["pictures"] is not None:
            return Path(self.config["paths"]["pictures"])
        out = Path(self.config["out"])
        # the default `out` is named after the moment: drawing hours of pictures again for the next metric won't do
        return (out.parent if out.parent == SHARED else out) / "images"

    @property
    def batch(self) -> int:
        """Pictures at a time."""
        return at_least_1("batch", self.config["batch"])

    def missing_pictures(self, what: str) -> Iterator[str]:
        """Why there can't be pictures: neither a checkpoint nor a folder, or one that isn't there."""
        if self.images is not None:
            if not self.images.is_dir() and not self.are_shards:
                yield f"images={self.images} is no folder of pictures (nor shards, *.tar)"
            elif self.are_shards:
                try:
                    expand_urls(str(self.images), "images")
                except ValueError as error:
                    yield str(error)
        else:
            yield from self.missing_checkpoint(
                f"{what}, or images=DIR to score pictures that are there already", *WITH_GENERATOR
            )

    def wrong_images(self, prompts: PromptSet) -> Iterator[str]:
        """With `check=true`, why the pictures of `images=` aren't those of the prompts: a run says so by itself."""
        yield from self.trouble(lambda: self.pictures(prompts))

    def trouble(self, find: Callable[[], Drawn]) -> Iterator[str]:
        """With `check=true`, what is wrong with the pictures of `images=` that `find` finds."""
        if not self.config["check"] or self.images is None or list(self.missing_pictures("")):
            return
        try:
            find()
        except (OSError, ValueError) as error:
            yield str(error)

    @property
    def model_name(self) -> str | None:
        """The checkpoint, or the folder of a published model; None without a model."""
        named = self.config.get("pretrained")
        return self.config["ckpt"] if named is None else f"pretrained={named['name']} weights={self.config['weights']}"

    def missing_checkpoint(self, what: str, *tasks: str) -> Iterator[str]:
        """Why there is no model: neither `ckpt` nor `pretrained`, or one that can't be used for this."""
        if self.model_name is None:
            yield f"no model: set ckpt=RUN_OR_FILE (or pretrained=NAME weights=DIR) for {what}"
            return
        try:
            check_source(self.config)
            task = self.checkpoint_config.get("task")
        except (OSError, ValueError) as error:
            yield str(error)
            return
        if tasks and task not in tasks:
            yield f"{self.model_name} is a checkpoint of task={task}: {what} needs one of task={' or '.join(tasks)}"

    @cached_property
    def checkpoint_config(self) -> dict[str, Any]:
        """The configuration of the run that wrote the checkpoint; of a published model no more than its task.

        Raises:
            FileNotFoundError: when there is no such model.

        """
        if self.config.get("pretrained") is not None:
            locate_named(self.config)
            return {"task": "generator"}
        return io.config(io.read(self.config["ckpt"], mmap=True), self.config["ckpt"])

    @cached_property
    def _opened(self) -> tuple[STARPipeline, dict[str, Any]]:
        log.info("opening %s", self.model_name)
        return open_pipeline(self.config)

    @property
    def pipeline(self) -> STARPipeline:
        """The generator, on its device."""
        return self._opened[0]

    def autocast(self) -> AbstractContextManager[Any]:
        """What `precision=` means for a forward pass."""
        return autocast(self.config["precision"], torch.device(self.device))

    @cached_property
    def tokenizer(self) -> tuple[MultiScaleTokenizer, ScaleSchedule]:
        """The tokenizer and its scales, from a checkpoint of either task."""
        if self.checkpoint_config.get("task") in WITH_GENERATOR:
            return self.pipeline.tokenizer, self.pipeline.schedule
        module = self.checkpoint_config["module"]
        tokenizer = instantiate_trusted(module["tokenizer"], packages=self.config["trusted"])
        io.load(tokenizer, io.part(self._state, "tokenizer."), what=f"tokenizer of {self.config['ckpt']}")
        schedule = instantiate_trusted(module["schedule"], packages=self.config["trusted"])
        return tokenizer.eval().requires_grad_(False).to(self.device), schedule

    @cached_property
    def identity(self) -> str | None:
        """Hash of the model's weights; None without a model."""
        if self.model_name is None:
            return None
        if self.checkpoint_config.get("task") in WITH_GENERATOR:
            return self.pipeline.identity
        return fingerprint(self._state)

    @property
    def _state(self) -> dict[str, torch.Tensor]:
        return io.weights(io.read(self.config["ckpt"], mmap=True), averaged=self.config["averaged"])

    def settings(self, preset: Mapping[str, Any] | None) -> dict[str, Any]:
        """What the pictures of a protocol depend on; sets the pipeline's decoder accordingly.

        The command line's `sampling=` wins over the protocol's preset, which wins over the checkpoint's own.
        """
        pipeline, settings = self._opened
        chosen = self.config["sampling"]
        # without a protocol's preset it is what the pipeline was opened with: its classes were checked then
        own = preset is None or "_target_" in chosen
        chosen = settings["sampling"] if own else merge_preset(preset or {}, chosen)
        build, words = resolve_sampling(self.config, chosen)
        pipeline.set_preset(build)
        settings = {name: value for name, value in settings.items() if name != "refiner"}
        return {**settings, "sampling": words, **refined_by(pipeline)}

    def pictures(self, prompts: PromptSet, preset: Mapping[str, Any] | None = None) -> Drawn:
        """The pictures of a prompt set: those of `images=`, or drawn once and kept.

        Raises:
            ValueError: when the folder `images=` doesn't hold them.

        """
        if self.are_shards:
            raise ValueError(
                f"{prompts.name} needs a folder, to match pictures with prompts: images={self.images} are shards"
            )
        if self.images is not None:
            return Drawn(self.images, match(self.images, prompts.requests(), only=self.config["format"]))
        settings = self.settings(preset)
        key = json.dumps([self.identity, settings, prompts.fingerprint()], sort_keys=True)
        name = f"{prompts.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        folder = self.store / name
        requests = prompts.requests()
        if name not in self._drawn:
            layout = "geneval" if prompts.layout == "geneval" else "flat"
            log.info("pictures of %s: %s", prompts.name, folder)
            shared = {"rank": self.ranks.rank, "world": self.ranks.world}
            if self.ranks.rank == 0:  # before another rank can have drawn anything there
                claim(folder, settings, self.pipeline.identity)
            self.ranks.wait()
            draw(self.pipeline, requests, folder, batch=self.batch, settings=settings, layout=layout, **shared)
            self.ranks.wait()
            pictures = [Picture(str(folder / request.file), request.metadata) for request in requests]
            self._drawn[name] = Drawn(folder, pictures, settings["sampling"])
        return self._drawn[name]
