"""Training of the refiner, the network of causal-driven sampling, on a frozen generator."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from star.models.refiner import Refiner, check_fit
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.objectives.masked_refinement import MaskedRefinement
from star.sampling.decoder import ScaleWiseDecoder, needs_refiner
from star.schedule import ScaleSchedule
from star.training.generator_module import GeneratorModule, OptimizerSpec
from star.types import Batch, LossReport

log = logging.getLogger(__name__)

FROZEN = ("transformer", "tokenizer", "text_encoder")
VALIDATION_SHARE = 0.5


class SamplerModule(GeneratorModule):
    """Trains a refiner on the hidden states of a generator that stays as it is (STAR section 4.3).

    Generator, tokenizer and text encoder are frozen and always in evaluation mode, so that their stochastic depth is
    off; they are saved with the checkpoint, which can draw pictures by itself.

    Args:
        refiner: what is trained.
        transformer: the generator.
        tokenizer: images to tokens.
        text_encoder: captions to conditions.
        objective: the loss.
        schedule: the scales.
        optimizer: builds the optimiser.
        caption_dropout: share of the captions that are emptied for classifier-free guidance.
        adopt_head: begin as a copy of the generator's head instead of at random, see `Refiner.adopt`.
        decoder: from (transformer, tokenizer, schedule, refiner) to what draws pictures during training; None: none.

    Raises:
        ValueError: when refiner and generator, or text encoder and generator, don't have the same widths, or the
            dropout isn't in [0, 1].

    """

    def __init__(
        self,
        *,
        refiner: Refiner,
        transformer: STARTransformer,
        tokenizer: MultiScaleTokenizer,
        text_encoder: nn.Module,
        objective: MaskedRefinement,
        schedule: ScaleSchedule,
        optimizer: OptimizerSpec,
        caption_dropout: float = 0.1,
        adopt_head: bool = True,
        decoder: Callable[..., ScaleWiseDecoder] | None = None,
    ) -> None:
        check_fit(refiner, transformer)
        preset = getattr(decoder, "keywords", {})
        if "sampler" in preset and not needs_refiner(preset["sampler"]):
            log.warning(
                "the preset of this training's pictures, which its checkpoints keep, doesn't use the refiner: choose "
                "one that does, sampling=causal_driven"
            )
        loss: Any = objective
        super().__init__(
            transformer=transformer,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            objective=loss,
            schedule=schedule,
            optimizer=optimizer,
            caption_dropout=caption_dropout,
            decoder=None if decoder is None else partial(decoder, refiner=refiner),
        )
        self.refiner = refiner
        self.adopt_head = adopt_head
        for name in FROZEN:
            self.get_submodule(name).requires_grad_(False)

    def begin(self) -> None:
        """Set the refiner on its way, once the generator has its weights."""
        if self.adopt_head:
            self.refiner.adopt(self.transformer.head, self.tokenizer.quantizer.codebook.weight)

    def train(self, mode: bool = True) -> Self:
        """Only the refiner is ever in training mode."""
        super().train(mode)
        for name in FROZEN:
            self.get_submodule(name).eval()
        return self

    def loss(self, batch: Batch, caption_dropout: float, *, every_token: bool = False) -> LossReport:
        """Tokenise and encode the captions; with `every_token`, for validation, half of the tokens are known."""
        with torch.no_grad():
            codes, condition = self.codes(batch), self.condition(batch, caption_dropout)
        objective: Any = self.objective
        return objective(
            self.refiner,
            self.transformer,
            self.tokenizer,
            codes,
            condition,
            self.schedule,
            known_share=VALIDATION_SHARE if every_token else None,
        )
