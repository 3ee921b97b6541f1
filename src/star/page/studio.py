"""What the page does, without the page: drawings that grow, and maps of how they came about."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from star.page.limits import Limits
from star.page.presets import OWN, Presets
from star.pipeline import STARPipeline
from star.pipeline_call import settings_of
from star.sampling.attention import attention_maps, attention_picture, token_at
from star.sampling.confidence import WithConfidence, confidence_picture
from star.sampling.decoder import DecodeState, ScaleWiseDecoder
from star.sampling.order import MAX_SEED
from star.utils.png import as_image, describe_picture, write_png

_PREVIEW = 16  # tokens of a preview's longer side: larger pictures grow in small ones


@dataclass(frozen=True)
class Wish:
    """What a visitor asks for.

    Attributes:
        prompt: the caption.
        negative_prompt: what guidance leads away from.
        seed: of the first picture; the next ones count up.
        images: how many.
        preset: name of the sampling preset.
        knobs: values that replace the preset's.

    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    images: int = 1
    preset: str = OWN
    knobs: Mapping[str, float | None] = field(default_factory=dict)

    def check(self, limits: Limits) -> None:
        """Raise a ValueError that a visitor understands unless the wish can be met."""
        if not self.prompt.strip():
            raise ValueError("Write a prompt first.")
        for name, text in (("prompt", self.prompt), ("negative prompt", self.negative_prompt)):
            if len(text) > limits.prompt:
                raise ValueError(f"The {name} has {len(text):,} characters, at most {limits.prompt:,} are allowed.")
        if not 1 <= self.images <= limits.images:
            raise ValueError(f"Between 1 and {limits.images} pictures can be drawn at a time, not {self.images}.")
        if not 0 <= self.seed < MAX_SEED - self.images:
            raise ValueError(f"The seed is a whole number from 0, got {self.seed}.")


@dataclass(frozen=True)
class Drawn:
    """A finished drawing and what its maps need.

    Attributes:
        wish: what was asked for.
        images: the pictures (N, 3, H, W) in [0, 1].
        codes: of every scale, (N, L_k).
        traces: of every scale.

    """

    wish: Wish
    images: Tensor
    codes: Sequence[Tensor]
    traces: Sequence[Any]


@dataclass(frozen=True)
class Growing:
    """A drawing on its way.

    Attributes:
        scale: how many scales are drawn.
        scales: of how many.
        previews: what the pictures look like by now.
        drawn: the finished drawing, behind the last scale.

    """

    scale: int
    scales: int
    previews: list[Image.Image]
    drawn: Drawn | None = None


class Studio:
    """Draws what visitors wish, one step of one drawing at a time.

    Args:
        pipeline: draws.
        presets: by which settings.
        limits: how much may be asked for.

    """

    def __init__(self, pipeline: STARPipeline, presets: Presets, limits: Limits) -> None:
        self.pipeline = pipeline
        self.presets = presets
        self.limits = limits
        self._models = threading.Lock()  # held while a model computes, never while a visitor is waited for

    def draw(self, wish: Wish) -> Iterator[Growing]:
        """A drawing after each of its scales; the last one is finished.

        Raises:
            ValueError: for a wish that can't be met; a visitor understands it.

        """
        wish.check(self.limits)
        decoder = self.presets.decoder(self.pipeline.decoder, wish.preset, wish.knobs)
        seeds = [wish.seed + j for j in range(wish.images)]
        states = self.pipeline.scales(
            [wish.prompt] * wish.images, seeds, negative_prompt=wish.negative_prompt, decoder=decoder
        )
        scales = len(decoder.schedule)
        for k in range(scales):
            with self._models:
                state = next(states)
                last = k + 1 == scales
                images = self.pipeline.paint(state) if last else self._preview(decoder, state)
            drawn = self._drawn(wish, images, state) if last else None
            yield Growing(k + 1, scales, [as_image(image, {}) for image in images], drawn)

    def save(self, drawn: Drawn, folder: Path, stem: str) -> list[Path]:
        """Write a drawing's pictures, each with its text fields, and say where."""
        wish = drawn.wish
        decoder = self.presets.decoder(self.pipeline.decoder, wish.preset, wish.knobs)
        decoder.sampler = decoder.sampler.sampler if isinstance(decoder.sampler, WithConfidence) else decoder.sampler
        settings = settings_of(self.pipeline, decoder)
        files = [folder / f"{stem}_{wish.seed + j}.png" for j in range(wish.images)]
        for j, file in enumerate(files):
            fields = describe_picture(
                prompt=wish.prompt,
                seed=wish.seed + j,
                weights=self.pipeline.identity,
                negative_prompt=wish.negative_prompt,
                settings=settings,
            )
            write_png(drawn.images[j], file, fields)
        return files

    def confidence(self, drawn: Drawn, image: int = 0) -> Image.Image:
        """How probable the drawn token was, everywhere and at every scale: dark is unsure."""
        return as_image(confidence_picture(drawn.traces, self.pipeline.schedule, image=image), {})

    def attention(self, drawn: Drawn, across: float, down: float, image: int = 0) -> Image.Image:
        """Where the token at a place of the picture (coordinates from 0 to 1) looked, at every scale."""
        schedule, device = self.pipeline.schedule, self.pipeline.device
        with self._models, torch.no_grad():
            maps = attention_maps(
                self.pipeline.transformer,
                self.pipeline.tokenizer.quantizer,
                [codes[image : image + 1].to(device) for codes in drawn.codes],
                self.pipeline.text_encoder([drawn.wish.prompt]).to(device),
                schedule,
                query=token_at(schedule, across, down),
            )
        return as_image(attention_picture(maps.mean(0), schedule), {})

    def _preview(self, decoder: ScaleWiseDecoder, state: DecodeState) -> Tensor:
        side = max(decoder.schedule.sizes[-1])
        return self.pipeline.paint(state) if side <= _PREVIEW else decoder.preview(state, _PREVIEW)

    @staticmethod
    def _drawn(wish: Wish, images: Tensor, state: DecodeState) -> Drawn:
        return Drawn(wish, images.cpu(), [codes.cpu() for codes in state.codes], state.traces)
