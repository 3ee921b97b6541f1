"""What stays in fp32 under mixed precision, and how a gradient scaler survives an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.attention import QKNorm
from star.objectives.teacher_forcing import TeacherForcing
from star.schedule import ScaleSchedule
from star.training.optim import AdamW
from star.types import Condition


def test_head_norms_residuals_and_loss_are_fp32(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_transformer()
    seen: dict[str, set[torch.dtype]] = {}

    def listen(name: str) -> Callable[..., None]:
        return lambda _, __, output: seen.setdefault(name, set()).add(output.dtype)

    for name, part in model.named_modules():
        if isinstance(part, nn.LayerNorm):
            part.register_forward_hook(listen("norm"))
        elif name in ("head", "blocks.0", "blocks.1"):
            part.register_forward_hook(listen(name))
        elif isinstance(part, nn.Linear):
            part.register_forward_hook(listen("linear"))
    unit: Any = torch.nn.functional.normalize
    monkeypatch.setattr(
        torch.nn.functional, "normalize", lambda x, **how: listen("qk")(None, None, x) or unit(x, **how)
    )
    assert isinstance(model.blocks[0].attention.norm, QKNorm)
    codes = [torch.randint(32, (3, length)) for length in schedule.lengths]
    with torch.autocast("cpu", torch.bfloat16):
        report = TeacherForcing()(model, tokenizer, codes, condition, schedule)
    assert report.total.dtype == torch.float32
    assert seen.pop("linear") == {torch.bfloat16}
    assert set(seen) == {"norm", "qk", "head", "blocks.0", "blocks.1"}
    assert all(kinds == {torch.float32} for kinds in seen.values())


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        # fp16 overflows once, so that the scale moves
        return self.layer(batch).float().square().mean() * (1e6 if self.global_step == 1 else 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable.*", "ignore:.*Checkpoint directory.*")
@pytest.mark.filterwarnings("ignore:.*fewer than the logging interval.*", "ignore:.*lr_scheduler.step.*")
def test_a_gradient_scaler_resumes_to_the_bit(tmp_path: Path) -> None:
    def fit(steps: int, ckpt_path: Path | None = None) -> tuple[Line, float]:
        torch.manual_seed(0)
        module = Line()
        plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**12))  # type: ignore[attr-defined]
        trainer = Trainer(
            accelerator="cpu",
            plugins=[plugin],
            max_steps=steps,
            callbacks=[ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(torch.ones(40, 4), batch_size=2), ckpt_path=ckpt_path)  # type: ignore[arg-type]
        assert plugin.scaler is not None
        return module, plugin.scaler.get_scale()

    straight, scale = fit(6)
    assert scale < 2.0**12
    resumed, again = fit(6, tmp_path / "step=3.ckpt")
    assert again == scale
    assert torch.equal(straight.layer.weight, resumed.layer.weight)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.filterwarnings("ignore:.*fewer than the logging interval.*", "ignore:.*lr_scheduler.step.*")
def test_a_fused_optimizer_s_gradients_are_unscaled_and_clipped(precision: Any, fused: bool, tmp_path: Path) -> None:
    class Clipped(Line):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return AdamW(0.1, fused=fused).build(self.named_parameters(), 10)[0]

        def on_train_batch_end(self, *_: Any) -> None:
            norms.append(torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm().item())

    norms: list[float] = []
    torch.manual_seed(0)
    module = Clipped()
    before = module.layer.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)  # type: ignore[attr-defined]
    plugin = MixedPrecision(precision, "cpu", scaler=scaler if precision == "16-mixed" else None)
    trainer = Trainer(
        accelerator="cpu",
        plugins=[plugin],
        max_steps=1,
        gradient_clip_val=0.01,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(torch.ones(4, 4), batch_size=2))  # type: ignore[arg-type]
    assert norms == pytest.approx([0.01], rel=1e-3)
    assert not torch.equal(module.layer.weight, before)
