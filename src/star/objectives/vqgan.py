"""What a tokenizer is trained for: faithful images, a codebook that fits, and, against a critic, realism."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.models.tokenizer.progress import Moment, Progress
from star.models.tokenizer.quantizer import Quantized
from star.types import LossReport

Augment = Callable[[Tensor, torch.Generator | None], Tensor]


class VQGANObjective(nn.Module):
    """Reconstruction, quantiser, perceptual and adversarial losses of a tokenizer (VQGAN; weights after VAR).

    Args:
        l1: weight of the absolute error.
        l2: weight of the squared error.
        codebook: weight of the distance that moves codebook and phi.
        commitment: weight of the distance that moves the encoder (beta).
        perceptual: (images, reconstructions) -> distances (B,), such as `LPIPS`; None: without.
        perceptual_weight: its weight.
        adversarial: weight of the discriminator's opinion; matters only where there is a discriminator.
        adaptive: smallest and largest factor on that weight, which scales the adversarial gradient at the decoder's
            last layer to the size of the reconstruction's; None: no such factor.
        adversarial_start: when the discriminator begins to learn and to be heard.
        adversarial_warmup: how long its weight then takes to grow to the full one.
        consistency: weight of the discriminator's agreement with itself on differently augmented images (bCR); 0: none.
        augment: changes what the discriminator sees, differentiably; None: nothing.

    Raises:
        ValueError: for a negative weight, or a range that isn't one.

    """

    def __init__(
        self,
        *,
        l1: float = 0.2,
        l2: float = 1.0,
        codebook: float = 1.0,
        commitment: float = 0.25,
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 1.0,
        adversarial: float = 0.4,
        adaptive: tuple[float, float] | None = (0.015, 1e4),
        adversarial_start: Moment = 0.2,
        adversarial_warmup: Moment = 0.02,
        consistency: float = 0.0,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        weights = {
            "l1": l1,
            "l2": l2,
            "codebook": codebook,
            "commitment": commitment,
            "perceptual": perceptual_weight,
            "adversarial": adversarial,
            "consistency": consistency,
        }
        if negative := {name: weight for name, weight in weights.items() if weight < 0}:
            raise ValueError(f"weights of losses can't be negative, got {negative}")
        if adaptive is not None and not 0 <= adaptive[0] <= adaptive[1]:
            raise ValueError(f"adaptive is a (smallest, largest) pair of positive factors, got {adaptive}")
        if consistency and augment is None:
            raise ValueError("consistency compares augmented images: give it an augment, or set consistency to 0")
        self.weights = weights
        self.perceptual = perceptual
        self.adaptive = adaptive
        self.adversarial_start, self.adversarial_warmup = adversarial_start, adversarial_warmup
        self.augment = augment

    def adversarial_weight(self, progress: Progress) -> float:
        """Weight of the discriminator's opinion at this step, before the adaptive factor; 0 until it starts."""
        return self.weights["adversarial"] * progress.ramp(self.adversarial_start, self.adversarial_warmup)

    def reconstruction(self, images: Tensor, reconstructions: Tensor, quantized: Quantized | None) -> LossReport:
        """Everything but the adversarial loss.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            reconstructions: (B, 3, H, W), not clamped.
            quantized: what the quantiser did; None when the features passed as they are.

        Returns:
            The weighted sum, and every part unweighted; `pixels` is what images alone contribute.

        """
        images, reconstructions = images.float(), reconstructions.float()
        parts = {"l1": F.l1_loss(reconstructions, images), "l2": F.mse_loss(reconstructions, images)}
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(images, reconstructions).mean()
        pixels = self._weigh(parts)
        scalars = parts | {"pixels": pixels}
        if quantized is None:
            return LossReport(pixels, scalars)
        coding = {"codebook": quantized.codebook, "commitment": quantized.commitment}
        return LossReport(pixels + self._weigh(coding), scalars | coding)

    def generator(
        self,
        images: Tensor,
        reconstructions: Tensor,
        quantized: Quantized | None,
        *,
        discriminator: nn.Module,
        last_layer: Tensor,
        progress: Progress,
        generator: torch.Generator | None = None,
    ) -> LossReport:
        """The tokenizer's loss against a discriminator; before its start, the reconstruction loss alone.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            reconstructions: (B, 3, H, W), not clamped, with the graph that made them.
            quantized: as for `reconstruction`.
            discriminator: images (B, 3, H, W) to logits of any shape; gets no gradient.
            last_layer: the parameter at which gradients are compared.
            progress: the step.
            generator: of the augmentation's randomness.

        """
        report = self.reconstruction(images, reconstructions, quantized)
        weight = self.adversarial_weight(progress)
        if weight == 0:
            return report
        with _held(discriminator):
            opinion = -discriminator(self._augmented(reconstructions.float(), generator)).float().mean()
        pixels = report.scalars["pixels"]
        factor = (
            opinion.new_ones(())
            if self.adaptive is None
            else adaptive_factor(pixels, opinion, last_layer, self.adaptive)
        )
        scalars = {**report.scalars, "adversarial": opinion, "adversarial_factor": factor}
        return LossReport(report.total + weight * factor * opinion, scalars)

    def discriminator(
        self,
        images: Tensor,
        reconstructions: Tensor,
        *,
        discriminator: nn.Module,
        generator: torch.Generator | None = None,
    ) -> LossReport:
        """The discriminator's hinge loss on images and reconstructions, both (B, 3, H, W); moves nothing else."""
        both = torch.cat([images.float(), reconstructions.detach().float().clamp(-1, 1)])
        logits = discriminator(self._augmented(both, generator)).float()
        real, fake = logits.chunk(2)
        loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        scalars = {
            "hinge": loss,
            "accuracy_real": (real > 0).float().mean(),
            "accuracy_fake": (fake < 0).float().mean(),
        }
        if self.weights["consistency"] > 0:
            again = discriminator(self._augmented(both, generator)).float()
            scalars["consistency"] = F.mse_loss(again, logits)
            loss = loss + self.weights["consistency"] * scalars["consistency"]
        return LossReport(loss, scalars)

    def _weigh(self, parts: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()

    def _augmented(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return images if self.augment is None else self.augment(images, generator)


def adaptive_factor(loss: Tensor, opinion: Tensor, last_layer: Tensor, limits: tuple[float, float]) -> Tensor:
    """|d loss / d last_layer| / |d opinion / d last_layer|, within limits (VQGAN equation 7)."""
    wanted = torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
    given = torch.autograd.grad(opinion, last_layer, retain_graph=True)[0].norm()
    return (wanted / (given + 1e-6)).clamp(*limits).detach()


@contextmanager
def _held(network: nn.Module) -> Iterator[None]:
    """Let gradients through a network but not into it."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
