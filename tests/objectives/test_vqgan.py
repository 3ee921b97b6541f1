from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from star.models.tokenizer.augment import DiffAugment
from star.models.tokenizer.discriminator import PatchDiscriminator
from star.models.tokenizer.progress import Progress
from star.models.tokenizer.quantizer import Quantized
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.objectives.vqgan import VQGANObjective, adaptive_factor
from star.schedule import ScaleSchedule

START = Progress(50, 100)


def quantized() -> Quantized:
    return Quantized(torch.zeros(1), [], torch.tensor(3.0), torch.tensor(5.0))


def critic() -> PatchDiscriminator:
    return PatchDiscriminator(channels=8, num_layers=1, groups=4)


def pair() -> tuple[Tensor, Tensor]:
    return torch.rand(2, 3, 8, 8) * 2 - 1, torch.randn(2, 3, 8, 8)


def test_the_reconstruction_loss_is_the_weighted_sum_of_its_parts() -> None:
    images, drawn = pair()
    report = VQGANObjective(l1=0.2, l2=2.0, codebook=0.5, commitment=0.25).reconstruction(images, drawn, quantized())
    l1, l2 = (drawn - images).abs().mean(), (drawn - images).square().mean()
    torch.testing.assert_close(report.total, 0.2 * l1 + 2.0 * l2 + 0.5 * 5.0 + 0.25 * 3.0)
    torch.testing.assert_close(report.scalars["l1"], l1)
    torch.testing.assert_close(report.scalars["pixels"], 0.2 * l1 + 2.0 * l2)


def test_without_the_quantiser_only_pixels_count() -> None:
    report = VQGANObjective().reconstruction(*pair(), None)
    assert torch.equal(report.total, report.scalars["pixels"])
    assert "codebook" not in report.scalars


def test_losses_are_computed_in_full_precision() -> None:
    images, drawn = pair()
    with torch.autocast("cpu", torch.bfloat16):
        half = VQGANObjective().reconstruction(images.bfloat16(), drawn.bfloat16(), None)
    assert half.total.dtype == torch.float32
    torch.testing.assert_close(
        half.total, VQGANObjective().reconstruction(images.bfloat16().float(), drawn.bfloat16().float(), None).total
    )


def test_a_perceptual_loss_is_weighed_like_the_others() -> None:
    class Distance(nn.Module):
        def forward(self, images: Tensor, others: Tensor) -> Tensor:
            return (images - others).square().mean((1, 2, 3))

    images, drawn = pair()
    plain = VQGANObjective().reconstruction(images, drawn, None)
    seen = VQGANObjective(perceptual=Distance(), perceptual_weight=0.5).reconstruction(images, drawn, None)
    torch.testing.assert_close(seen.total, plain.total + 0.5 * (images - drawn).square().mean())


def test_the_adaptive_factor_is_the_ratio_of_gradient_norms() -> None:
    layer, x = torch.randn(4, requires_grad=True), torch.randn(4)
    loss, opinion = (layer * x).sum() * 3, (layer * x).sum() * 0.5
    assert adaptive_factor(loss, opinion, layer, (0.0, 1e4)).item() == pytest.approx(6.0, rel=1e-4)
    assert adaptive_factor(loss, opinion, layer, (0.0, 2.0)).item() == 2.0
    assert adaptive_factor(opinion, loss, layer, (0.3, 1e4)).item() == pytest.approx(0.3)


def test_the_adversarial_gradient_gets_the_size_of_the_other_times_its_weight(
    tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule
) -> None:
    objective = VQGANObjective(adversarial=0.4, adaptive=(0.0, 1e9), adversarial_start=0, adversarial_warmup=0)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    drawn, coded = tokenizer(images, schedule)
    last = tokenizer.decoder.last_layer
    report = objective.generator(
        images, drawn, coded, discriminator=critic(), last_layer=last, progress=Progress(0, 10)
    )
    plain = objective.reconstruction(images, drawn, coded)
    (pixels,) = torch.autograd.grad(plain.scalars["pixels"], last, retain_graph=True)
    (added,) = torch.autograd.grad(report.total - plain.total, last)
    assert added.norm().item() == pytest.approx(0.4 * pixels.norm().item(), rel=1e-3)


def test_the_discriminator_is_not_heard_before_its_start_and_then_ever_louder() -> None:
    objective = VQGANObjective(adversarial=0.5, adversarial_start=0.2, adversarial_warmup=10)
    weights = [objective.adversarial_weight(Progress(step, 100)) for step in range(100)]
    assert weights[:20] == [0.0] * 20
    assert weights == sorted(weights)
    assert 0 < weights[20] < 0.1
    assert weights[40] == 0.5

    class Deaf(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError("asked before its time")

    images, drawn = pair()
    kwargs = {"discriminator": Deaf(), "last_layer": drawn, "progress": Progress(19, 100)}
    early = objective.generator(images, drawn, None, **kwargs)
    assert torch.equal(early.total, objective.reconstruction(images, drawn, None).total)


def test_each_loss_reaches_its_own_network_alone() -> None:
    objective = VQGANObjective(adaptive=None, augment=DiffAugment(), consistency=2.0)
    network, painter = critic(), nn.Conv2d(3, 3, 1)
    images, _ = pair()
    drawn = painter(images)
    kwargs = {"discriminator": network, "last_layer": painter.weight, "progress": START}
    objective.generator(images, drawn, None, **kwargs).total.backward(retain_graph=True)
    assert painter.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    painter.weight.grad = None
    objective.discriminator(images, drawn, discriminator=network).total.backward()
    assert painter.weight.grad is None
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_one_backward_pass_serves_both() -> None:
    """The sum of both losses gives each network the gradient of its own."""
    objective = VQGANObjective(adaptive=None)
    network, painter = critic(), nn.Conv2d(3, 3, 1)
    images, _ = pair()

    def gradients(joint: bool) -> list[Tensor]:
        network.zero_grad()
        painter.zero_grad()
        drawn = painter(images)
        kwargs = {"discriminator": network, "last_layer": painter.weight, "progress": START}
        drawing = objective.generator(images, drawn, None, **kwargs).total
        judging = objective.discriminator(images, drawn, discriminator=network).total
        if joint:
            (drawing + judging).backward()
        else:
            drawing.backward()
            judging.backward()
        return [p.grad.clone() for p in (*network.parameters(), *painter.parameters())]

    for together, apart in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(together, apart)


def test_the_hinge_loss_is_zero_for_a_sure_critic_and_two_for_one_that_sees_nothing() -> None:
    class Sure(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 5 * images.mean((1, 2, 3))[:, None].sign()

    class Blind(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 1)

    images, drawn = torch.ones(2, 3, 8, 8), -torch.ones(2, 3, 8, 8)
    sure = VQGANObjective().discriminator(images, drawn, discriminator=Sure())
    assert sure.total == 0
    assert sure.scalars["accuracy_real"] == sure.scalars["accuracy_fake"] == 1
    assert VQGANObjective().discriminator(images, drawn, discriminator=Blind()).total == 2


def test_consistency_compares_two_augmentations() -> None:
    images, drawn = pair()
    network = critic()
    objective = VQGANObjective(augment=DiffAugment(), consistency=3.0)
    report = objective.discriminator(images, drawn, discriminator=network, generator=torch.Generator().manual_seed(0))
    assert report.scalars["consistency"] > 0
    torch.testing.assert_close(report.total, report.scalars["hinge"] + 3.0 * report.scalars["consistency"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"l1": -1.0}, "l1"), ({"adaptive": (2.0, 1.0)}, "adaptive"), ({"consistency": 1.0}, "augment")],
)
def test_impossible_settings_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQGANObjective(**wrong)
