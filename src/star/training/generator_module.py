"""Training of the generator: batches in, LossReport out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from star.checkpoints.parts import check_widths
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.objectives.teacher_forcing import TeacherForcing
from star.sampling.decoder import ScaleWiseDecoder
from star.schedule import ScaleSchedule
from star.training.optim import Named
from star.types import Batch, LossReport


class OptimizerSpec(Protocol):
    """What builds an optimiser once the length of the training is known."""

    def build(self, named: Named, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """The optimiser and its schedule."""
        ...


class GeneratorModule(LightningModule):
    """Trains the transformer on the tokens of a frozen tokenizer (STAR section 3.1).

    Args:
        transformer: what is trained.
        tokenizer: images to tokens; frozen, and saved with the checkpoint so that it is complete.
        text_encoder: captions to conditions; frozen and never saved, or trained along (`trainable`).
        objective: the loss.
        schedule: the scales.
        optimizer: builds the optimiser.
        caption_dropout: share of the captions that are emptied for classifier-free guidance.
        decoder: from (transformer, tokenizer, schedule) to what draws pictures during training; None draws none.

    Raises:
        ValueError: when the text encoder's widths aren't the transformer's, or the dropout isn't in [0, 1].

    """

    def __init__(
        self,
        *,
        transformer: STARTransformer,
        tokenizer: MultiScaleTokenizer,
        text_encoder: nn.Module,
        objective: TeacherForcing,
        schedule: ScaleSchedule,
        optimizer: OptimizerSpec,
        caption_dropout: float = 0.1,
        decoder: Callable[..., ScaleWiseDecoder] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout is a share of the captions, got {caption_dropout}")
        encoder: Any = text_encoder
        check_widths(transformer, encoder.pooled_width, encoder.context_width)
        self.transformer = transformer
        self.tokenizer = tokenizer.requires_grad_(False)
        self.text_encoder = text_encoder
        self.objective = objective
        self.schedule = schedule
        self.optimizer = optimizer
        self.caption_dropout = caption_dropout
        self.decoder = decoder

    def setup(self, stage: str) -> None:
        """Read a frozen text encoder's weights before the first batch needs them."""
        del stage
        if not self.text_encoder.trainable:
            load: Callable[[], None] = self.text_encoder.load  # type: ignore[assignment]
            load()

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Loss of a batch whose captions are partly emptied."""
        report = self.loss(batch, self.caption_dropout)
        self.log_dict(report.report("train"), batch_size=len(batch))
        return report.total

    def validation_step(self, batch: Batch, _: int) -> None:
        """Loss and accuracy with every caption."""
        report = self.loss(batch, 0.0)
        self.log_dict(report.report("val"), batch_size=len(batch), sync_dist=True)

    def loss(self, batch: Batch, caption_dropout: float) -> LossReport:
        """Tokenise, encode the captions, and let the objective do the rest."""
        self.tokenizer.eval()
        codes = self.tokenizer.encode(batch.images, self.schedule)
        dropped = (torch.rand(len(batch)) < caption_dropout).tolist()
        captions = ["" if drop else caption for drop, caption in zip(dropped, batch.captions, strict=True)]
        condition = self.text_encoder(captions).trim()
        return self.objective(self.transformer, self.tokenizer, codes, condition, self.schedule)

    def sample_images(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures (B, 3, H, W) in [0, 1] drawn for the batch's captions, beside the real ones."""
        if self.decoder is None:
            return {}
        draw = self.decoder(self.transformer, self.tokenizer, self.schedule)
        state = draw(self.text_encoder(batch.captions), self.text_encoder([""]), list(range(len(batch))))
        return {"samples": draw.images(state), "real": batch.images.add(1).div(2)}

    def configure_optimizers(self) -> Any:
        """Everything that requires a gradient, stepped once per optimiser step."""
        optimizer, scheduler = self.optimizer.build(
            self.named_parameters(), int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
