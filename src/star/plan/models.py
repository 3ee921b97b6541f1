"""The models of a configuration, without their memory, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from star.checkpoints.blank import blank
from star.models.conditioning.openclip import OpenCLIPTextEncoder
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.objectives.train_tokens import counts
from star.schedule import ScaleSchedule
from star.training.optim import decays
from star.utils.instantiate import instantiate

DTYPES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class TextSize:
    """What a text encoder weighs.

    Attributes:
        parameters: how many; None where the files that say so aren't here.
        embeddings: those of them that are looked up, not multiplied with.
        max_tokens: of a caption.
        trainable: trained with the generator.
        bytes_each: of a parameter.

    """

    parameters: int | None
    embeddings: int
    max_tokens: int
    trainable: bool
    bytes_each: int

    @property
    def flops(self) -> int:
        """Operations of one forward pass over a caption of `max_tokens`, but for its attention."""
        return 2 * ((self.parameters or 0) - self.embeddings) * self.max_tokens


@dataclass(frozen=True)
class Models:
    """What a training of a generator holds.

    Attributes:
        transformer: without memory.
        tokenizer: without memory.
        text: the text encoder's size.
        schedule: the scales.
        counts: how many tokens of each scale are trained.

    """

    transformer: STARTransformer
    tokenizer: MultiScaleTokenizer
    text: TextSize
    schedule: ScaleSchedule
    counts: tuple[int, ...]


def build(config: Mapping[str, Any]) -> Models:
    """The models of a resolved configuration of train.py.

    Raises:
        ValueError: for another task than `generator`.

    """
    if config["task"] != "generator":
        raise ValueError(f"a plan is made for task=generator, got task={config['task']}")
    schedule: ScaleSchedule = instantiate(config["schedule"])
    with blank():
        transformer, tokenizer = instantiate(config["model"]), instantiate(config["tokenizer"])
    trained = counts(instantiate(config["train_tokens"]), schedule)
    return Models(transformer, tokenizer, text_size(config["text_encoder"]), schedule, trained)


def text_size(config: Mapping[str, Any]) -> TextSize:
    """The size of a configured text encoder; its weights aren't read."""
    with blank():
        encoder = instantiate(config)
    network: nn.Module | None = encoder
    if not encoder.trainable:
        network = _network(config)
    parameters = None if network is None else count(network)
    embeddings = (
        0 if network is None else sum(count(part) for part in network.modules() if isinstance(part, nn.Embedding))
    )
    width = 4 if encoder.trainable else DTYPES[encoder.dtype]
    return TextSize(parameters, embeddings, encoder.max_tokens, encoder.trainable, width)


def _network(config: Mapping[str, Any]) -> nn.Module | None:
    """A frozen encoder's network without memory; None when the files that describe it aren't here."""
    kind = str(config["_target_"]).rpartition(".")[2]
    random = {"weights": None} if kind == OpenCLIPTextEncoder.__name__ else {"random_weights": True}
    try:
        with torch.device("meta"):
            return instantiate(config, **random).build()
    except FileNotFoundError:
        return None


def count(module: nn.Module) -> int:
    """How many parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def matrices(module: nn.Module, part: str) -> int:
    """How many parameters an optimiser for matrices takes: those with decay and `part` in their names."""
    named = module.named_parameters(prefix="transformer")
    return sum(parameter.numel() for name, parameter in named if part in name and decays(name, parameter))
