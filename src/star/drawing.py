"""Drawing a list of prompts into a folder: resumable, in batches, with a record of every picture."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from star.checkpoints.named import read_named
from star.checkpoints.presets import built_preset, resolve_sampling
from star.checkpoints.refiner import with_refiner
from star.pipeline import STARPipeline
from star.sampling.decoder import needs_refiner
from star.sampling.order import MAX_SEED, at_least_1
from star.sampling.precision import chosen_precision
from star.utils.devices import choose_device
from star.utils.files import write_atomically
from star.utils.heap import keep_freed_memory
from star.utils.instantiate import instantiate
from star.utils.png import describe_picture, drawn_from, write_png
from star.utils.progress import StepBar

log = logging.getLogger(__name__)

LAYOUTS = ("flat", "geneval")
# what a protocol notes of its own pictures and its scorer's file of a prompt doesn't hold
_BOOKKEEPING = ("index", "image", "file", "place")


@dataclass(frozen=True)
class Request:
    """One picture to draw.

    Attributes:
        prompt: the caption.
        seed: of its random stream.
        file: where it goes, relative to the folder.
        metadata: what else its line of the prompt file says.

    """

    prompt: str
    seed: int
    file: str
    metadata: Mapping[str, Any]


def plan(prompts: Sequence[Mapping[str, Any]], *, num_images: int, seed: int, layout: str = "flat") -> list[Request]:
    """Every picture of a list of prompts.

    Args:
        prompts: each with `prompt`, and optionally its own `seed`.
        num_images: pictures per prompt; the j-th has the seed `seed + j`, whatever the prompt's place in the list.
        seed: the first seed.
        layout: `flat` numbers all pictures; `geneval` makes a folder per prompt.

    Raises:
        ValueError: for another layout, fewer than one image, or a seed that is none.

    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is one of {', '.join(LAYOUTS)}, got {layout!r}")
    at_least_1("num_images", num_images)
    requests = []
    for i, record in enumerate(prompts):
        first = _first_seed(record, seed, num_images)
        for j in range(num_images):
            file = f"{i * num_images + j:05d}.png" if layout == "flat" else f"{i:05d}/samples/{j:05d}.png"
            requests.append(Request(record["prompt"], first + j, file, record))
    return requests


def _first_seed(record: Mapping[str, Any], seed: Any, num_images: int) -> int:
    """The seed of a prompt's first picture: its own, or the one that all share."""
    first = seed if record.get("seed") is None else record["seed"]
    if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first <= MAX_SEED - num_images:
        raise ValueError(
            f"a seed is a whole number between 0 and {MAX_SEED - 1}, got {first!r} for the prompt {record['prompt']!r}"
        )
    return first


def draw(
    pipeline: STARPipeline,
    requests: Sequence[Request],
    out: Path,
    *,
    batch: int,
    settings: Mapping[str, Any],
    layout: str = "flat",
    rank: int = 0,
    world: int = 1,
) -> Path:
    """Draw what isn't there yet, and write `index.jsonl` (file, prompt, seed) and `settings.json`.

    A folder whose `settings.json` says the same is continued; every picture is written whole or not at all. Batches
    depend neither on what is there nor on the ranks: an interrupted run ends with the pictures of a whole one.

    Args:
        pipeline: draws.
        requests: all pictures of the folder.
        out: the folder.
        batch: pictures drawn at a time, at least 1.
        settings: what the pictures depend on besides the weights; `negative_prompt` among it.
        layout: of the requests' files.
        rank: this process, of
        world: so many that share the work; rank 0 writes the records.

    Raises:
        FileExistsError: when the folder holds pictures drawn with other settings, or from other prompts or seeds.

    """
    # shared out before asking what is there already: the ranks look at different moments
    own = list(_batches(requests, batch))[rank::world]
    out.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        claim(out, settings, pipeline.identity)
        _write_index(out, requests, layout)
    missing = {request.file for request in requests if not (out / request.file).is_file()}
    if len(missing) < len(requests) and rank == 0:
        log.info("%d of %d pictures are already in %s", len(requests) - len(missing), len(requests), out)
    groups = [group for group in own if any(request.file in missing for request in group)]
    with Progress(disable=not groups or rank > 0) as progress:
        bar = StepBar(progress, batches=len(groups), scales=len(pipeline.schedule))
        for group in groups:
            prompts, seeds = zip(*((request.prompt, request.seed) for request in group), strict=True)
            images = pipeline.draw(prompts, seeds, negative_prompt=settings["negative_prompt"], watch=bar)
            for request, image in zip(group, images, strict=True):
                if request.file in missing:
                    write_png(image, out / request.file, _fields(request, settings, pipeline.identity))
            bar.next()
    return out / "index.jsonl"


def _fields(request: Request, settings: Mapping[str, Any], weights: str) -> dict[str, str]:
    """The text of a picture's file; the negative prompt is a field of its own."""
    others = {name: value for name, value in settings.items() if name != "negative_prompt"}
    return describe_picture(
        prompt=request.prompt,
        seed=request.seed,
        weights=weights,
        negative_prompt=settings["negative_prompt"],
        settings=others,
    )


def claim(out: Path, settings: Mapping[str, Any], weights: str) -> None:
    """Continue a folder with the same settings and weights, refuse one with others.

    Raises:
        FileExistsError: for a folder of pictures drawn with others.

    """
    held = out / "settings.json"
    text = json.dumps({**settings, "weights": weights}, indent=2, sort_keys=True)
    if held.is_file() and held.read_text() != text:
        raise FileExistsError(
            f"{out} holds pictures drawn with other settings or weights (see {held}): choose another out=, or remove it"
        )
    if not held.is_file():
        out.mkdir(parents=True, exist_ok=True)
        if any(out.rglob("*.png")):
            raise FileExistsError(f"{out} holds pictures of unknown settings: choose another out=")
        write_atomically(held, lambda path: _write(path, text))


def _refuse_others(out: Path, requests: Sequence[Request]) -> None:
    """Raise a FileExistsError for a picture of another prompt or seed: the index would say what it isn't."""
    for request in requests:
        file = out / request.file
        if file.is_file() and (held := drawn_from(file)) != (request.prompt, str(request.seed)):
            raise FileExistsError(
                f"{file} was drawn from {held[0]!r} with seed {held[1]}, now asked for is {request.prompt!r} with seed "
                f"{request.seed}: choose another out=, or remove {out}"
            )


def _write_index(out: Path, requests: Sequence[Request], layout: str) -> None:
    _refuse_others(out, requests)
    if layout == "geneval":
        for request in requests:
            folder = (out / request.file).parent.parent
            folder.mkdir(parents=True, exist_ok=True)
            ours = _BOOKKEEPING if "place" in request.metadata else ()
            line = {name: value for name, value in request.metadata.items() if name not in ours}
            (folder / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    lines = [{"file": request.file, "prompt": request.prompt, "seed": request.seed} for request in requests]
    index = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomically(out / "index.jsonl", lambda path: _write(path, index))


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _batches(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    for first in range(0, len(requests), at_least_1("batch", size)):
        yield requests[first : first + size]


def open_pipeline(config: Mapping[str, Any]) -> tuple[STARPipeline, dict[str, Any]]:
    """The pipeline that a resolved sample.yaml asks for, and the settings that its pictures depend on.

    Raises:
        FileNotFoundError: when weights are missing.
        ValueError: unless it asks for either a checkpoint or a release; or when something doesn't fit.

    """
    check_source(config)
    precision = chosen_precision(config["precision"], choose_device(config["device"]))
    settings = {"precision": precision, "negative_prompt": config["negative_prompt"] or ""}
    trusted: dict[str, Any] = {"precision": precision, "trusted": config["trusted"]}
    if config.get("pretrained") is None:
        build, preset = resolve_sampling(config, config["sampling"])
        trusted |= {"refiner": config["refiner"], "averaged": config["averaged"]}
        pipeline = STARPipeline.from_checkpoint(config["ckpt"], sampling=build, **trusted)
    else:
        checkpoint = read_named(config)
        if config["refiner"] is not None:
            checkpoint = with_refiner(checkpoint, config["refiner"], what=config["weights"])
        build, preset = built_preset(config["weights"], checkpoint["config"], config["sampling"], config["trusted"])
        pipeline = STARPipeline.from_parts(checkpoint, what=config["weights"], sampling=build, **trusted)
        # weights alone don't decide these pictures: switches like first_sample_text come with the configuration
        settings["model"] = {
            part: checkpoint["config"]["module"][part] for part in ("transformer", "text_encoder", "schedule")
        }
    if config["refiner"] is not None and not needs_refiner(pipeline.decoder.sampler):
        log.warning(
            "refiner=%s isn't used by this preset: choose one that is, sampling=causal_driven", config["refiner"]
        )
    pipeline.to(choose_device(config["device"]))
    if pipeline.device.type == "cpu":
        keep_freed_memory()
    if config.get("speed") is not None:
        pipeline.speed_up(instantiate(config["speed"]))
        settings |= {"speed": shown} if (shown := pipeline.speed.decisive()) else {}
    return pipeline, {"sampling": preset, **settings, **refined_by(pipeline)}


def refined_by(pipeline: STARPipeline) -> dict[str, str]:
    """Which refiner pictures depend on; nothing where the preset asks none."""
    if pipeline.refiner_identity is None or not needs_refiner(pipeline.decoder.sampler):
        return {}
    return {"refiner": pipeline.refiner_identity}


def check_source(config: Mapping[str, Any]) -> None:
    """Raise a ValueError unless exactly one of `ckpt` and `pretrained` is set."""
    given = [name for name in ("ckpt", "pretrained") if config.get(name) is not None]
    if len(given) != 1:
        problem = "both are set" if given else "neither is"
        raise ValueError(f"set either ckpt=RUN_OR_FILE or pretrained=NAME weights=DIR: {problem}")
