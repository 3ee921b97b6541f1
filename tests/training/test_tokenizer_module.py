from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from star.callbacks.codebook_usage import CodebookUsage
from star.models.tokenizer.augment import DiffAugment
from star.models.tokenizer.autoencoder import Decoder, Encoder
from star.models.tokenizer.discriminator import PatchDiscriminator
from star.models.tokenizer.progress import Progress
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.revival import CodebookRevival
from star.models.tokenizer.scale_dropout import ScaleDropout
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.objectives.vqgan import VQGANObjective
from star.schedule import ScaleSchedule
from star.training.tokenizer_module import TokenizerModule, psnr
from star.types import Batch

SCHEDULE = ScaleSchedule.square(1, 2, 4)
STEPS = 10


class Plain:
    """Adam with a rate that falls, without the rest of what an optimiser specification offers."""

    def __init__(self, lr: float = 1e-3) -> None:
        self.lr = lr
        self.total_steps: int | None = None

    def build(self, named: Any, total_steps: int) -> tuple[Optimizer, LambdaLR]:
        self.total_steps = total_steps
        optimizer = torch.optim.Adam([p for _, p in named if p.requires_grad], lr=self.lr)
        return optimizer, LambdaLR(optimizer, lambda step: 1 - step / (total_steps + 1))


def build_tokenizer() -> MultiScaleTokenizer:
    sizes = {"channels": 8, "multipliers": (1, 2), "num_res_blocks": 1, "code_width": 6, "groups": 4}
    quantizer = MultiScaleVQ(16, 6, phi=ResidualConv(6))
    return MultiScaleTokenizer(encoder=Encoder(**sizes), decoder=Decoder(**sizes), quantizer=quantizer)


def build(*, contested: bool = False, **changes: Any) -> TokenizerModule:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "tokenizer": build_tokenizer(),
        "schedule": SCHEDULE,
        "objective": VQGANObjective(adversarial_start=0.3, adversarial_warmup=2),
        "optimizer": Plain(),
    }
    if contested:
        arguments["discriminator"] = PatchDiscriminator(channels=8, num_layers=1, groups=4)
    return TokenizerModule(**(arguments | changes))


def everything() -> dict[str, Any]:
    """All that draws or counts: what a resumed training could get wrong."""
    torch.manual_seed(1)
    return {
        "objective": VQGANObjective(
            adversarial_start=0.3, adversarial_warmup=2, augment=DiffAugment(), consistency=1.0
        ),
        "discriminator": PatchDiscriminator(channels=8, num_layers=1, normalization="spectral"),
        "revival": CodebookRevival(codebook_size=16, num_scales=3, start=0.2, every=2, threshold=0.5),
        "scale_dropout": ScaleDropout(0.5),
    }


def loader(count: int = 5) -> DataLoader:
    images = torch.rand(5, 4, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return DataLoader([Batch(chunk, [""] * 4) for chunk in images[:count]], batch_size=None)


def fit(module: LightningModule, root: Path, *callbacks: Callback, ckpt: Path | None = None, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": STEPS,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "default_root_dir": root,
        "callbacks": list(callbacks),
        "limit_val_batches": 0,
    }
    batches = changes.pop("batches", 5)
    trainer = Trainer(**(settings | changes))
    trainer.fit(module, loader(batches), loader(), ckpt_path=ckpt)
    return trainer


class Watch(Callback):
    """Remembers what was logged, the rates and the sizes of both gradients after every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []
        self.norms: list[float] = []
        self.critic_norms: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        rates = {f"rate{i}": group["lr"] for i, group in enumerate(groups)}
        self.seen.append({k: float(v) for k, v in trainer.callback_metrics.items()} | rates)
        self.norms.append(norm(pl_module.tokenizer))
        self.critic_norms.append(norm(pl_module.discriminator))


def norm(network: nn.Module | None) -> float:
    gradients = [] if network is None else [p.grad.norm() for p in network.parameters() if p.grad is not None]
    return float(torch.stack(gradients).norm()) if gradients else 0.0


@pytest.mark.parametrize("contested", [False, True])
def test_a_step_counts_once(contested: bool, tmp_path: Path) -> None:
    watch, module = Watch(), build(contested=contested)
    trainer = fit(module, tmp_path, watch)
    assert trainer.global_step == len(watch.seen) == STEPS
    assert module.total_steps == STEPS
    assert watch.seen[-1]["rate0"] == pytest.approx(1e-3 * (1 - STEPS / (STEPS + 1)))


def test_the_discriminator_and_its_schedule_begin_late(tmp_path: Path) -> None:
    watch, other = Watch(), Plain(2e-3)
    module = build(contested=True, discriminator_optimizer=other)
    before = [parameter.detach().clone() for parameter in module.discriminator.parameters()]

    class Early(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            after = list(pl_module.discriminator.parameters())
            same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            assert same == (trainer.global_step <= 3)

    fit(module, tmp_path, watch, Early())
    assert other.total_steps == 7
    assert [seen["rate1"] for seen in watch.seen[:3]] == [2e-3] * 3
    assert watch.seen[-1]["rate1"] == pytest.approx(2e-3 * (1 - 7 / 8))
    assert "train/adversarial" not in watch.seen[2]
    assert {"train/adversarial", "train/adversarial_factor", "train/discriminator/hinge"} <= set(watch.seen[-1])


@pytest.mark.parametrize("contested", [False, True])
def test_gradients_are_clipped_with_and_without_a_discriminator(contested: bool, tmp_path: Path) -> None:
    free, clipped = Watch(), Watch()
    fit(build(contested=contested), tmp_path, free)
    fit(build(contested=contested), tmp_path, clipped, gradient_clip_val=0.01)
    assert min(free.norms) > 0.02
    assert max(clipped.norms) == pytest.approx(0.01, rel=0.01)
    if contested:  # each by itself
        assert min(free.critic_norms[3:]) > 0.02
        assert max(clipped.critic_norms) == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("contested", [False, True])
def test_mixed_precision_trains(contested: bool, tmp_path: Path) -> None:
    watch, module = Watch(), build(contested=contested)
    before = module.tokenizer.decoder.last_layer.detach().clone()
    fit(module, tmp_path, watch, precision="bf16-mixed")
    assert all(torch.isfinite(torch.tensor(seen["train/loss"])) for seen in watch.seen)
    assert not torch.equal(module.tokenizer.decoder.last_layer, before)


def state(module: LightningModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("contested", [False, True])
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("stop", [1, 5, 7])
def test_a_resumed_training_is_an_uninterrupted_one(contested: bool, stop: int, tmp_path: Path) -> None:
    """Interrupted before the codebook is fitted, between two revivals, and with the discriminator at work."""

    def module() -> TokenizerModule:
        settings = everything()
        return build(**(settings if contested else settings | {"discriminator": None}))

    saver = ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=stop, save_top_k=-1)
    whole, first, second = module(), module(), module()
    fit(whole, tmp_path, batches=1)  # epochs of one step: where exactly to go on is the loader's business

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= stop

    fit(first, tmp_path, Stop(), saver, min_steps=1, batches=1)
    torch.manual_seed(99)
    trainer = fit(second, tmp_path, saver, ckpt=tmp_path / "at.ckpt", batches=1)
    assert trainer.global_step == STEPS
    for name, value in state(whole).items():
        assert torch.equal(value, state(second)[name]), name


def test_accumulated_batches_draw_for_themselves_and_share_a_codebook(tmp_path: Path) -> None:
    drawn: list[int] = []
    tended: list[int] = []

    class Dropout(ScaleDropout):
        def __call__(self, batch: int, num_scales: int, generator: torch.Generator | None = None) -> Tensor:
            assert generator is not None
            drawn.append(generator.initial_seed())
            return super().__call__(batch, num_scales, generator)

    class Revival(CodebookRevival):
        def tend(self, quantizer: MultiScaleVQ, f: Tensor, schedule: ScaleSchedule, progress: Progress) -> int:
            tended.append(progress.step)
            return super().tend(quantizer, f, schedule, progress)

    revival = Revival(codebook_size=16, num_scales=3, start=0.1, every=1)
    module = build(scale_dropout=Dropout(0.5), revival=revival)
    fit(module, tmp_path, accumulate_grad_batches=2, batches=4, max_steps=4)
    assert len(set(drawn)) == len(drawn) == 8
    assert tended == [0, 1, 2, 3]


def test_checkpoints_hold_nothing_but_plain_types(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=STEPS)
    fit(build(**everything()), tmp_path, saver)
    saved = torch.load(tmp_path / "at.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in saved["state_dict"]} == {"tokenizer", "discriminator", "revival"}


def test_validation_reports_psnr_and_the_use_of_every_scale(tmp_path: Path) -> None:
    module = build()
    trainer = fit(module, tmp_path, CodebookUsage(every_n_steps=5), limit_val_batches=1.0, val_check_interval=5)
    logged = trainer.callback_metrics
    expected = {f"val/usage/scale_0{k}" for k in range(3)} | {f"train/perplexity/scale_0{k}" for k in range(3)}
    assert expected | {"val/psnr", "val/loss", "val/usage/pooled", "train/l1"} <= set(logged)
    images = torch.cat([batch.images for batch in loader()])
    module.eval()
    with torch.no_grad():
        assert logged["val/psnr"].item() == pytest.approx(psnr(images, module.reconstruct(images)).mean().item())


def test_psnr_is_the_mean_of_each_image_s_decibels() -> None:
    images = torch.zeros(2, 3, 4, 4)
    drawn = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    torch.testing.assert_close(psnr(images, drawn), torch.tensor([20.0, 40.0]))
    assert psnr(images, images).tolist() == [100.0, 100.0]
    assert torch.equal(psnr(torch.ones(1, 3, 4, 4), torch.full((1, 3, 4, 4), 5.0)), torch.tensor([100.0]))


def test_pictures_are_in_zero_to_one() -> None:
    batch = next(iter(loader()))
    pictures = build().sample_images(batch)
    assert set(pictures) == {"images", "reconstructions"}
    torch.testing.assert_close(pictures["images"], (batch.images + 1) / 2)
    assert all(0 <= images.min() <= images.max() <= 1 for images in pictures.values())


def test_features_pass_unquantised_until_the_codebook_is_fitted(tmp_path: Path) -> None:
    watch = Watch()
    care = CodebookRevival(codebook_size=16, num_scales=3, start=0.5, every=0)
    module = build(revival=care)
    fit(module, tmp_path, watch)
    assert ["train/codebook" in seen for seen in watch.seen] == [False] * 5 + [True] * 5
    assert [seen["train/revived"] for seen in watch.seen] == [0.0] * 5 + [16.0] + [0.0] * 4


def test_frozen_parts_stay_and_the_others_learn(tmp_path: Path) -> None:
    module = build(frozen=("encoder", "before", "quantizer"))
    before = state(module)
    fit(module, tmp_path)
    changed = {name.split(".")[1] for name, value in state(module).items() if not torch.equal(value, before[name])}
    assert changed == {"after", "decoder"}


def test_an_endless_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_steps"):
        fit(build(), tmp_path, max_steps=-1, max_epochs=-1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frozen": ("head",)}, "frozen takes"),
        ({"frozen": ("encoder", "before", "quantizer", "after", "decoder")}, "not all"),
        ({"revival": CodebookRevival(codebook_size=8, num_scales=3)}, "8 codes"),
        ({"revival": CodebookRevival(codebook_size=16, num_scales=3), "frozen": ("quantizer",)}, "revival=null"),
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**wrong)


def test_images_of_another_resolution_are_refused() -> None:
    with pytest.raises(ValueError, match="change the stage"):
        build().reconstruct(torch.zeros(1, 3, 16, 16))


def test_a_frozen_decoder_has_no_layer_to_balance_a_discriminator_at(tmp_path: Path) -> None:
    """Found when it is built, not when the discriminator begins, a fifth of the training later."""
    with pytest.raises(ValueError, match=r"objective\.adaptive=null"):
        build(contested=True, frozen=("decoder",))
    build(frozen=("decoder",))
    objective = VQGANObjective(adversarial_start=0.3, adversarial_warmup=2, adaptive=None)
    module = build(contested=True, frozen=("decoder",), objective=objective)
    before = state(module)
    fit(module, tmp_path)
    changed = {name.rsplit(".", 2)[0] for name, value in state(module).items() if not torch.equal(value, before[name])}
    assert any(name.startswith("discriminator") for name in changed)
    assert not any(name.startswith("tokenizer.decoder") for name in changed)
