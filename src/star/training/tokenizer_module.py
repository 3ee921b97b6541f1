"""Training of the tokenizer: images in, LossReport out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from star.models.tokenizer.progress import Progress
from star.models.tokenizer.pyramid import PyramidVQ
from star.models.tokenizer.quantizer import Quantized
from star.models.tokenizer.revival import CodebookRevival
from star.models.tokenizer.scale_dropout import ScaleDropout
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.objectives.vqgan import VQGANObjective
from star.schedule import ScaleSchedule
from star.training.generator_module import OptimizerSpec
from star.training.rivals import RivalOptimizer, RivalSchedules
from star.training.steps import total_steps
from star.types import Batch

PARTS = ("encoder", "before", "quantizer", "after", "decoder")


class TokenizerModule(LightningModule):
    """Trains a tokenizer, with or without a discriminator against it.

    A step is one backward pass for both networks and counts once. `trainer.gradient_clip_val` holds for each alone.

    Args:
        tokenizer: what is trained.
        schedule: the scales.
        objective: the losses.
        optimizer: builds the tokenizer's optimiser.
        discriminator: images to logits; None: no adversarial loss.
        discriminator_optimizer: builds its optimiser; None: built as the tokenizer's is.
        revival: care for the codebook; None: the codebook is left to its gradients, as VAR does.
        scale_dropout: hides fine scales from the decoder; None: it always sees all.
        frozen: parts of the tokenizer that stay as they are; the first three of `encoder`, `before`, `quantizer`,
            `after`, `decoder` tune a decoder on codes that don't change.
        seed: of scale dropout and augmentation; each draw also depends on the step, the process and which of the
            batches accumulated for the step it is.

    Raises:
        ValueError: for an unknown or no trained part, a revival of another codebook or of a frozen one, an adaptive
            adversarial weight with a frozen decoder, or a pyramid without scale dropout.

    """

    def __init__(
        self,
        *,
        tokenizer: MultiScaleTokenizer,
        schedule: ScaleSchedule,
        objective: VQGANObjective,
        optimizer: OptimizerSpec,
        discriminator: nn.Module | None = None,
        discriminator_optimizer: OptimizerSpec | None = None,
        revival: CodebookRevival | None = None,
        scale_dropout: ScaleDropout | None = None,
        frozen: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not set(frozen) < set(PARTS):
            raise ValueError(f"frozen takes some of {', '.join(PARTS)}, not all, got {list(frozen)}")
        if revival is not None and "quantizer" in frozen:
            raise ValueError(
                "revival changes the codebook, so it can't go with a frozen quantizer: "
                "set tokenizer_training.revival=null"
            )
        if revival is not None and revival.usage.shape != (len(schedule), tokenizer.quantizer.codebook_size):
            raise ValueError(
                f"revival counts {revival.usage.shape[1]} codes on {revival.usage.shape[0]} scales, but there are "
                f"{tokenizer.quantizer.codebook_size} on {len(schedule)}"
            )
        if discriminator is not None and objective.adaptive is not None and "decoder" in frozen:
            raise ValueError(
                "the adaptive weight of a discriminator compares gradients at the decoder's last layer, which a frozen "
                "decoder doesn't have: set tokenizer_training.objective.adaptive=null"
            )
        if isinstance(tokenizer.quantizer, PyramidVQ) and scale_dropout is None and "encoder" not in frozen:
            raise ValueError(
                "a pyramid's coarse maps learn from pictures made of them alone: set tokenizer_training.scale_dropout="
                "'{_target_: star.models.tokenizer.scale_dropout.ScaleDropout, probability: 0.5}'"
            )
        self.tokenizer = tokenizer
        self.schedule = schedule
        self.objective = objective
        self.optimizer = optimizer
        self.discriminator = discriminator
        self.discriminator_optimizer = discriminator_optimizer or optimizer
        self.revival = revival
        self.scale_dropout = scale_dropout
        self.seed = seed
        self.total_steps: int | None = None
        for part in frozen:
            getattr(tokenizer, part).requires_grad_(False)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Loss of a batch, and its codes (None while nothing is quantised)."""
        progress = self.progress()
        place = batch_idx % self.trainer.accumulate_grad_batches
        generator = self._generator(place)
        features = self._features(batch.images)
        if self.revival is not None and place == 0:  # gradients that are being gathered are those of these codes
            revived = self.revival.tend(self.tokenizer.quantizer, features.detach(), self.schedule, progress)
            self.log("train/revived", float(revived), batch_size=len(batch))
        kept = None
        if self.scale_dropout is not None:
            kept = self.scale_dropout(len(batch), len(self.schedule), generator).to(features.device)
        reconstructions, quantized = self._paint(features, kept)
        if self.revival is not None and quantized is not None:
            self.revival.observe(quantized.codes)
        total = self._judge(batch.images, reconstructions, quantized, progress, generator)
        return {"loss": self._complete(total), "codes": None if quantized is None else quantized.codes}

    def validation_step(self, batch: Batch, _: int) -> dict[str, Any]:
        """Losses and PSNR of what the whole tokenizer makes of a batch, and its codes."""
        reconstructions, quantized = self._autoencode(batch.images)
        report = self.objective.reconstruction(batch.images, reconstructions, quantized)
        named = report.report("val") | {"val/psnr": psnr(batch.images, reconstructions).mean()}
        self.log_dict(named, batch_size=len(batch), sync_dist=True)
        return {"codes": None if quantized is None else quantized.codes}

    def reconstruct(self, images: Tensor) -> Tensor:
        """What the tokenizer makes of images (B, 3, H, W), both in [-1, 1]."""
        return self._autoencode(images)[0].clamp(-1, 1)

    def sample_images(self, batch: Batch) -> dict[str, Tensor]:
        """Images and their reconstructions, each (B, 3, H, W) in [0, 1]."""
        pairs = {"images": batch.images, "reconstructions": self.reconstruct(batch.images)}
        return {name: (images.float() + 1) / 2 for name, images in pairs.items()}

    def progress(self) -> Progress:
        """The step of the training."""
        return Progress(self.global_step, self.total_steps)

    def configure_optimizers(self) -> Any:
        """The optimiser, or both as one; the discriminator's schedule begins when it does."""
        self.total_steps = total_steps(self.trainer)
        optimizer, scheduler = self.optimizer.build(self.tokenizer.named_parameters(), self.total_steps)
        if self.discriminator is None:
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        begin = Progress(0, self.total_steps).steps(self.objective.adversarial_start)
        critic, critic_scheduler = self.discriminator_optimizer.build(
            self.discriminator.named_parameters(), max(self.total_steps - begin, 1)
        )
        both = RivalOptimizer(optimizer, critic)
        schedules = RivalSchedules(both, (scheduler, critic_scheduler), (0, begin))
        return {"optimizer": both, "lr_scheduler": {"scheduler": schedules, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Lightning steps schedules of its own kinds only; the joint one is none."""
        scheduler.step()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Keep the discriminator as it is until it starts."""
        if self.discriminator is not None and self.objective.adversarial_weight(self.progress()) == 0:
            self.discriminator.zero_grad(set_to_none=True)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of each network by itself: the critic's size says nothing about the tokenizer's."""
        for part in optimizer.optimizers if isinstance(optimizer, RivalOptimizer) else (optimizer,):
            self.clip_gradients(part, gradient_clip_val, gradient_clip_algorithm)

    def _features(self, images: Tensor) -> Tensor:
        self.tokenizer.check((images.shape[2], images.shape[3]), self.schedule)
        return self.tokenizer.features(images)

    def _autoencode(self, images: Tensor) -> tuple[Tensor, Quantized | None]:
        return self._paint(self._features(images))

    def _paint(self, features: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Quantized | None]:
        """Reconstructions (B, 3, H, W), not clamped; not quantised as long as the revival waits to fit the codebook."""
        if self.revival is not None and not self.revival.fitted:
            shown = self.tokenizer.quantizer.unquantized(features, self.schedule, kept)
            return self.tokenizer.paint(shown), None
        quantized = self.tokenizer.quantizer.quantize(features, self.schedule, kept)
        return self.tokenizer.paint(quantized.f_hat), quantized

    def _judge(
        self,
        images: Tensor,
        reconstructions: Tensor,
        quantized: Quantized | None,
        progress: Progress,
        generator: torch.Generator,
    ) -> Tensor:
        """The loss of a step: of the tokenizer and, once it has started, of the discriminator."""
        if self.discriminator is None:
            report = self.objective.reconstruction(images, reconstructions, quantized)
            self.log_dict(report.report("train"), batch_size=len(images))
            return report.total
        report = self.objective.generator(
            images,
            reconstructions,
            quantized,
            discriminator=self.discriminator,
            last_layer=self.tokenizer.decoder.last_layer,
            progress=progress,
            generator=generator,
        )
        self.log_dict(report.report("train"), batch_size=len(images))
        if self.objective.adversarial_weight(progress) == 0:
            return report.total
        judged = self.objective.discriminator(
            images, reconstructions, discriminator=self.discriminator, generator=generator
        )
        self.log_dict(judged.report("train/discriminator"), batch_size=len(images))
        # Neither loss reaches the other's network, so one backward pass of the sum serves both.
        return report.total + judged.total

    def _complete(self, loss: Tensor) -> Tensor:
        """The loss; distributed, with a zero from every parameter, since DDP waits for all gradients in every step."""
        if self.trainer.world_size == 1:
            return loss
        return loss + 0.0 * torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum()

    def _generator(self, place: int) -> torch.Generator:
        """Randomness of one of a step's batches on this process: the same in a resumed training."""
        number = self.global_step * self.trainer.accumulate_grad_batches + place
        return torch.Generator().manual_seed(hash((self.seed, number, self.global_rank)) % 2**63)


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of images (B, 3, H, W) in [-1, 1]; at most 100."""
    difference = (images.float().clamp(-1, 1) - reconstructions.float().clamp(-1, 1)) / 2
    return -10 * difference.square().mean((1, 2, 3)).clamp(min=1e-10).log10()
