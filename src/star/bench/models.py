"""Models with random weights, and texts that no text encoder has read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from star.bench.settings import Settings
from star.pipeline import STARPipeline
from star.types import Condition
from star.utils.cli import compose, plain
from star.utils.devices import choose_device
from star.utils.instantiate import instantiate

TEXT_TOKENS = 77
VALID = 20  # tokens of a caption
VALID_EMPTY = 2  # of the empty caption: its beginning and its end


class SyntheticTexts(nn.Module):
    """Features of random numbers, as long as CLIP's: 77 tokens, 20 of them valid, 2 for the empty text.

    Args:
        pooled_width: of the pooled feature.
        context_width: of the hidden states; None makes none.

    """

    trainable = False
    max_tokens = TEXT_TOKENS
    identity = "synthetic"
    batch_invariant = True
    place: Tensor

    def __init__(self, pooled_width: int, context_width: int | None) -> None:
        super().__init__()
        self.pooled_width = pooled_width
        self.context_width = context_width
        self.register_buffer("place", torch.empty(0), persistent=False)

    def forward(self, captions: Sequence[str]) -> Condition:
        """Pooled (B, pooled_width), context (B, 77, context_width)."""
        generator = torch.Generator().manual_seed(len(captions))
        pooled = torch.randn(len(captions), self.pooled_width, generator=generator)
        if self.context_width is None:
            return Condition(pooled).to(self.place.device)
        context = torch.randn(len(captions), TEXT_TOKENS, self.context_width, generator=generator)
        valid = torch.tensor([VALID if caption else VALID_EMPTY for caption in captions])
        return Condition(pooled, context, torch.arange(TEXT_TOKENS) < valid[:, None]).to(self.place.device)


def configuration(settings: Settings) -> dict[str, Any]:
    """conf/train.yaml with the overrides, and conf/speed as sample.yaml has it."""
    rest = [override for override in settings.overrides if override not in settings.speed]
    config = plain(compose("train", ["paths.run_dir=none", *rest]))
    return {**config, "speed": plain(compose("sample", settings.speed))["speed"]}


def build_pipeline(settings: Settings, config: dict[str, Any]) -> STARPipeline:
    """Everything but a text encoder, with the weights that an untrained model has."""
    torch.manual_seed(0)
    text = config["text_encoder"]
    pipeline = STARPipeline(
        text_encoder=SyntheticTexts(text["pooled_width"], text["context_width"]),
        transformer=instantiate(config["model"]),
        tokenizer=instantiate(config["tokenizer"]),
        schedule=instantiate(config["schedule"]),
        decoder=instantiate(config["sampling"]).keywords,
        precision=settings.dtype,
    )
    return pipeline.to(choose_device(settings.device))
