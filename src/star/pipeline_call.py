"""The call that people know from diffusers: prompts in, Pillow images out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor

from star.checkpoints.describe import describe
from star.sampling.decoder import DecodeState, ScaleWiseDecoder, needs_refiner
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.order import Generators, Order, at_least_1, take_order
from star.schedule import ScaleSchedule
from star.utils.png import as_image, describe_picture
from star.utils.progress import StepBar

if TYPE_CHECKING:
    from star.pipeline import STARPipeline

Callback = Callable[["STARPipeline", int, DecodeState], None]


@dataclass(frozen=True)
class DrawnImages:
    """What a call drew, prompt by prompt.

    Attributes:
        images: for Pillow; saved as PNG they carry prompt, seed, settings and the model's hash as text.
        seeds: the seed that draws each of them again, whatever else is asked for in the same call.
        prompts: what each was drawn from.

    """

    images: list[Image.Image]
    seeds: list[int]
    prompts: list[str]


def call(
    self: STARPipeline,
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | Sequence[str] = "",
    num_images_per_prompt: int = 1,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    schedule: ScaleSchedule | None = None,
    generator: Generators | None = None,
    seeds: int | Sequence[int] | None = None,
    batch_size: int = 16,
    callback_on_scale_end: Callback | None = None,
    progress: bool = False,
) -> DrawnImages:
    """Draw pictures; in fp32 each depends on its prompt, its seed and the settings alone, not on what is drawn with it.

    Args:
        self: the pipeline.
        prompt: one caption or several.
        negative_prompt: what guidance leads away from; one for all captions, or one for each.
        num_images_per_prompt: pictures of every caption.
        guidance_scale: strength of guidance in this call, None for the preset's; as in VAR and STAR, 0 is the plain
            conditional model (which is 1 in Stable Diffusion's convention).
        height: of the pictures in pixels; has to be what the schedule draws, so there is no need to say it.
        width: likewise.
        schedule: other scales than the model's own, oblong ones for instance; what it never learned it draws badly.
        generator: draws the seeds: one for all pictures, or one for each; None is PyTorch's own (`torch.manual_seed`).
        seeds: instead: one number, picture j of every caption having the seed `seeds + j`; or one per picture.
        batch_size: pictures drawn at a time; bounds the memory.
        callback_on_scale_end: called with the pipeline, the scale k and the state after every scale of every batch;
            `pipeline.paint(state)` gives the pictures so far, an exception ends the call. With `best_of`, all are those
            of the kept candidates and come once these are drawn.
        progress: show a bar.

    Raises:
        ValueError: for what can't be drawn; it says why.

    """
    decoder = choose_decoder(self, guidance_scale=guidance_scale, schedule=schedule)
    check_size(self, decoder.schedule, height, width)
    order = take_order(prompt, negative_prompt, num_images_per_prompt, generator=generator, seeds=seeds)
    drawn = _draw(self, decoder, order, batch_size, callback_on_scale_end, progress)
    return _framed(self, decoder, order, drawn)


def choose_decoder(
    pipeline: STARPipeline, *, guidance_scale: float | None, schedule: ScaleSchedule | None
) -> ScaleWiseDecoder:
    """The pipeline's decoder, or a copy of it with another strength of guidance or another schedule.

    Raises:
        ValueError: for a guidance that has no strength to change, or a schedule that the model can't draw.

    """
    decoder = copy.copy(pipeline.decoder)
    if guidance_scale is not None:
        own = decoder.guidance
        if own is not None and not isinstance(own, ClassifierFreeGuidance):
            raise ValueError(f"guidance_scale can't change a {type(own).__name__}: choose another preset")
        kept = {} if own is None else {"ramp": own.ramp, "off_after": own.off_after, "on_from": own.on_from}
        decoder.guidance = ClassifierFreeGuidance(guidance_scale, **kept)  # type: ignore[arg-type]
    if schedule is not None and schedule != decoder.schedule:
        _check_schedule(pipeline, schedule)
        decoder.schedule = schedule
    return decoder


def check_size(pipeline: STARPipeline, schedule: ScaleSchedule, height: int | None, width: int | None) -> None:
    """Raise a ValueError unless the height and width asked for, if any, are what the schedule draws."""
    factor = pipeline.tokenizer.factor
    drawn = tuple(factor * side for side in schedule.sizes[-1])
    asked = (drawn[0] if height is None else height, drawn[1] if width is None else width)
    if asked != drawn:
        raise ValueError(
            f"height={asked[0]}, width={asked[1]}, but the schedule '{schedule}' draws {drawn[0]} x {drawn[1]} pixels "
            f"(its last map times {factor}): leave height and width out, open a model of that resolution, or give a "
            f"schedule= whose last map is {asked[0] / factor:g} x {asked[1] / factor:g}"
        )


def settings_of(pipeline: STARPipeline, decoder: ScaleWiseDecoder) -> dict[str, Any]:
    """What a picture depends on besides prompt, seed and weights, for its record."""
    known = {"sampling": preset_of(decoder), "precision": pipeline.precision, "schedule": str(decoder.schedule)}
    speed, refiner = decoder.speed.decisive(), pipeline.refiner_identity
    refined = refiner is not None and needs_refiner(decoder.sampler)
    return known | ({"speed": speed} if speed else {}) | ({"refiner": refiner} if refined else {})


def preset_of(decoder: ScaleWiseDecoder) -> dict[str, Any]:
    """The configuration of a decoder's settings.

    Raises:
        ValueError: for one that doesn't keep what it was built with.

    """
    names = ("guidance", "sampler", "constraint", "search", "cache_policy", "best_of")
    kept = {name: getattr(decoder, name) for name in names}
    target = f"{ScaleWiseDecoder.__module__}.{ScaleWiseDecoder.__qualname__}"
    return {"_target_": target} | {name: describe(part) for name, part in kept.items() if part is not None}


def _framed(pipeline: STARPipeline, decoder: ScaleWiseDecoder, order: Order, drawn: Tensor) -> DrawnImages:
    """Pictures (N, 3, H, W) as what a call returns, each with its text fields."""
    settings = settings_of(pipeline, decoder)
    pictures = []
    for image, prompt, negative, seed in zip(drawn, order.prompts, order.negative_prompts, order.seeds, strict=True):
        fields = describe_picture(
            prompt=prompt, negative_prompt=negative, seed=seed, weights=pipeline.identity, settings=settings
        )
        pictures.append(as_image(image, fields))
    return DrawnImages(pictures, list(order.seeds), list(order.prompts))


def _draw(
    pipeline: STARPipeline,
    decoder: ScaleWiseDecoder,
    order: Order,
    batch_size: int,
    callback: Callback | None,
    progress: bool,
) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1]."""
    at_least_1("batch_size", batch_size)
    parts = list(order.parts(batch_size))
    drawn = []
    with Progress(disable=not progress, transient=True) as bar:
        steps = StepBar(bar, batches=len(parts), scales=len(decoder.schedule))
        for part in parts:
            # one row of the empty text serves all pictures of it
            negatives = part.negative_prompts[:1] if len(set(part.negative_prompts)) == 1 else part.negative_prompts
            states = pipeline.scales(part.prompts, part.seeds, negative_prompt=negatives, watch=steps, decoder=decoder)
            for k, state in enumerate(states):
                if callback is not None:
                    callback(pipeline, k, state)
            steps.next()
            drawn.append(pipeline.paint(state))
    return torch.cat(drawn)


def _check_schedule(pipeline: STARPipeline, schedule: ScaleSchedule) -> None:
    """Let every part that depends on sizes look at a schedule before anything is drawn."""
    model, own = pipeline.transformer, pipeline.schedule
    if schedule.levels[0] == 0 and schedule.lengths[0] != model.start_position.shape[0]:
        raise ValueError(f"the schedule '{schedule}' doesn't begin as the model's, '{own}': keep the first map")
    asked = {"model": model} | ({"refiner": pipeline.refiner} if needs_refiner(pipeline.decoder.sampler) else {})
    for name, part in asked.items():
        level = getattr(part, "level", None)
        if level is not None and max(schedule.levels) >= level.num_embeddings:
            raise ValueError(
                f"the schedule '{schedule}' has {len(schedule)} maps, the {name} knows {level.num_embeddings} levels"
            )
    try:
        model.position.embedding(schedule)
        model.position.rotation(schedule, model.width // model.num_heads, pipeline.device)
    except ValueError as error:
        raise ValueError(f"the model can't draw the schedule '{schedule}': {error}") from error
