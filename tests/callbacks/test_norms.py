from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from star.callbacks.norms import Norms, norm, part_of
from star.models.transformer import STARTransformer
from star.schedule import ScaleSchedule
from star.types import Condition


class Module(lightning.LightningModule):
    """Trains a generator on noise; remembers what is logged and what gradients there were."""

    def __init__(self, transformer: STARTransformer, condition: Condition, schedule: ScaleSchedule) -> None:
        super().__init__()
        self.transformer = transformer
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.text, self.schedule = condition, schedule
        self.logged: list[tuple[int, dict[str, Tensor]]] = []
        self.gradients: list[float] = []

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        logits = self.transformer(batch, self.text, self.schedule)
        return logits.square().mean()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.gradients.append(
            float(sum(p.grad.square().sum() for p in self.parameters() if p.grad is not None)) ** 0.5  # type: ignore[arg-type]
        )

    def log_dict(self, named: Any, *_: Any, **__: Any) -> None:
        self.logged.append((self.trainer.global_step, dict(named)))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.fixture
def fit(
    build_transformer: Callable[..., STARTransformer], condition: Condition, schedule: ScaleSchedule
) -> Callable[..., Module]:
    def fit(callback: Norms, **settings: Any) -> Module:
        module = Module(build_transformer().train(), condition, schedule)
        batches = torch.randn(12, 3, schedule.total - 1, 8)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=6,
            callbacks=[callback],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            gradient_clip_val=1e-3,
            **settings,
        )
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
        return module

    return fit


pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:Found .* module.s. in eval mode")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_norms_are_those_of_the_unclipped_gradients_every_few_steps(
    fit: Callable[..., Module], accumulate: int
) -> None:
    module = fit(Norms(every_n_steps=3), accumulate_grad_batches=accumulate)
    assert [step for step, _ in module.logged] == [3, 6]
    for (step, named), expected in zip(module.logged, (module.gradients[2], module.gradients[5]), strict=True):
        assert float(named["gradient_norm"]) == pytest.approx(expected, rel=1e-4), step
        parts = [float(value) for name, value in named.items() if name.startswith("gradient_norm/")]
        assert sum(value**2 for value in parts) ** 0.5 == pytest.approx(expected, rel=1e-4)
        assert {"gradient_norm/transformer/block_01", "gradient_norm/transformer/head"} <= set(named)
        assert not any("frozen" in name for name in named)


def test_activations_are_those_behind_each_block(fit: Callable[..., Module]) -> None:
    module = fit(Norms(every_n_steps=1))
    transformer, found = module.transformer, []
    handles = [block.register_forward_hook(lambda *given: found.append(given[-1])) for block in transformer.blocks]
    callback = Norms(every_n_steps=1)
    module.trainer.fit_loop.epoch_loop.batch_progress.reset()
    callback.on_train_batch_start(module.trainer, module, None, 0)
    module.training_step(torch.randn(3, module.schedule.total - 1, 8), 0)
    for number, output in enumerate(found):
        rms = callback._found[f"activation_rms/transformer/block_{number:02d}"]
        torch.testing.assert_close(rms, output.detach().square().mean().sqrt())
        assert callback._found[f"activation_max/transformer/block_{number:02d}"] == output.abs().max()
    callback.on_exception(module.trainer, module, KeyboardInterrupt())
    assert all(len(block._forward_hooks) == 1 for block in transformer.blocks)
    for handle in handles:
        handle.remove()


def test_nothing_is_listened_to_between_looks(fit: Callable[..., Module]) -> None:
    module = fit(Norms(every_n_steps=4))
    assert [step for step, _ in module.logged] == [4]
    assert not any(block._forward_hooks for block in module.transformer.blocks)
    module = fit(Norms(every_n_steps=1, activations=False))
    assert not any("activation" in name for _, named in module.logged for name in named)


def test_parts_and_norms() -> None:
    assert part_of("transformer.blocks.12.attention.qkv.weight") == "transformer/block_12"
    assert part_of("transformer.head.logits.bias") == "transformer/head"
    assert part_of("tokenizer.encoder.levels.0.blocks.1.conv1.weight") == "tokenizer/encoder"
    assert part_of("scale") == "scale"
    tensors = [torch.randn(3, 4), torch.randn(5)]
    torch.testing.assert_close(norm(tensors), torch.cat([one.flatten() for one in tensors]).norm())
    with pytest.raises(ValueError, match="at least 1"):
        Norms(every_n_steps=0)
