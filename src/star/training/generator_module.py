"""Training of the generator: batches in, LossReport out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from star.checkpoints.parts import check_tokens, check_widths
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.init import follow_codebook
from star.objectives.teacher_forcing import TeacherForcing
from star.sampling.decoder import NO_REFINER, ScaleWiseDecoder, needs_refiner
from star.schedule import ScaleSchedule
from star.training.distributed import shard
from star.training.optim import Named
from star.training.steps import StepLog, total_steps
from star.types import Batch, Condition, LossReport


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
        codebook_start: a training from scratch begins with `star.nn.init.follow_codebook`, which helps short ones; off,
            as published.
        decoder: from (transformer, tokenizer, schedule) to what draws pictures during training; None draws none.

    Raises:
        ValueError: when text encoder, tokenizer or schedule don't fit the transformer, the dropout isn't in [0, 1], or
            the decoder needs a refiner and has none.

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
        codebook_start: bool = False,
        decoder: Callable[..., ScaleWiseDecoder] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout is a share of the captions, got {caption_dropout}")
        preset = getattr(decoder, "keywords", {})
        if needs_refiner(preset.get("sampler")) and "refiner" not in preset:
            raise ValueError(NO_REFINER)
        encoder: Any = text_encoder
        check_widths(transformer, encoder.pooled_width, encoder.context_width)
        check_tokens(transformer, tokenizer, schedule)
        self.transformer = transformer
        self.tokenizer = tokenizer.requires_grad_(False)
        self.text_encoder = text_encoder
        self.objective = objective
        self.schedule = schedule
        self.optimizer = optimizer
        self.caption_dropout = caption_dropout
        self.codebook_start = codebook_start
        self.decoder = decoder
        self.step_log = StepLog()

    def begin(self) -> None:
        """Start from scratch, now that the tokenizer has its weights."""
        if self.codebook_start:
            codebook = self.tokenizer.quantizer.codebook.weight
            follow_codebook(self.transformer.embed, self.transformer.head.logits, codebook)

    def configure_model(self) -> None:
        """Spread the transformer over the processes, if the strategy does so."""
        shard(self)

    def setup(self, stage: str) -> None:
        """Read a frozen text encoder's weights before the first batch needs them; a cache may do without."""
        del stage
        data = getattr(self._trainer, "datamodule", None)
        if not self.text_encoder.trainable and not getattr(data, "holds_text", False):
            load: Callable[[], None] = self.text_encoder.load  # type: ignore[assignment]
            load()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch whose captions are partly emptied."""
        report = self.loss(batch, self.caption_dropout)
        self.step_log.add(self, report.report("train"), batch_size=len(batch), batch_idx=batch_idx)
        return report.total

    def validation_step(self, batch: Batch, _: int) -> None:
        """Loss and accuracy with every caption and every token."""
        report = self.loss(batch, 0.0, every_token=True)
        self.log_dict(report.report("val"), batch_size=len(batch), sync_dist=True)

    def loss(self, batch: Batch, caption_dropout: float, *, every_token: bool = False) -> LossReport:
        """Tokenise, encode the captions, and let the objective do the rest."""
        self.tokenizer.eval()
        codes, condition = self.codes(batch), self.condition(batch, caption_dropout)
        return self.objective(
            self.transformer, self.tokenizer, codes, condition, self.schedule, every_token=every_token
        )

    def codes(self, batch: Batch) -> list[Tensor]:
        """Codes of each scale, (B, L_k) long: the batch's own where it comes from a cache, else those of its images."""
        if batch.codes is not None:
            return self.schedule.split(batch.codes)
        if batch.features is not None:
            return self.tokenizer.quantizer.encode(batch.features, self.schedule)
        return self.tokenizer.encode(batch.images, self.schedule)

    def condition(self, batch: Batch, caption_dropout: float) -> Condition:
        """The captions, a share of them emptied: encoded here, or by a cache."""
        known = encoded_before(batch)
        if known is None:
            dropped = (torch.rand(len(batch)) < caption_dropout).tolist()
            captions = ["" if drop else caption for drop, caption in zip(dropped, batch.captions, strict=True)]
            return self.text_encoder(captions).trim()
        text, empty = known
        return text.drop(caption_dropout, empty)

    def sample_images(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures (B, 3, H, W) in [0, 1] drawn for the batch's captions, beside the real ones (or what codes keep)."""
        if self.decoder is None:
            return {}
        draw = self.decoder(self.transformer, self.tokenizer, self.schedule)
        text, empty = encoded_before(batch) or (self.text_encoder(batch.captions), self.text_encoder([""]))
        state = draw(text, empty, list(range(len(batch))))
        real = batch.images if batch.images.numel() else self.tokenizer.decode_codes(self.codes(batch), self.schedule)
        return {"samples": draw.images(state), "real": real.add(1).div(2)}

    def configure_optimizers(self) -> Any:
        """Everything that requires a gradient, stepped once per optimiser step."""
        optimizer, scheduler = self.optimizer.build(self.named_parameters(), total_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def encoded_before(batch: Batch) -> tuple[Condition, Condition] | None:
    """The captions and the empty one, fp32, as a cache holds them; None where the batch has captions alone."""
    if batch.text is None or batch.empty is None:
        return None
    return Condition(*batch.text).to(torch.float32), Condition(*batch.empty).to(torch.float32)
