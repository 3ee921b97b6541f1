"""A small evaluation while training goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

from star.callbacks.ema import averages
from star.types import ImageMetric


class Evaluate(Callback):
    """Draws pictures for the first prompts of a list at fixed steps, scores them, and logs the result.

    Picture i of the list is drawn with the same seed each time, so that steps compare.

    Args:
        every_n_steps: how often.
        metric: scores pictures; has a `reset`.
        prompts: mappings with `prompt`, and what the metric wants to know of it; `num_prompts` are taken evenly spread.
        name: what the loggers call the results: `eval/NAME`, `eval/NAME/part`.
        num_prompts: how many; None takes all.
        batch: pictures drawn at a time.
        seed: of the noise.

    Raises:
        ValueError: for no prompts, or a number below 1.

    """

    def __init__(
        self,
        *,
        every_n_steps: int,
        metric: ImageMetric,
        prompts: Sequence[Mapping[str, Any]],
        name: str,
        num_prompts: int | None = 64,
        batch: int = 32,
        seed: int = 0,
    ) -> None:
        if not prompts or min(every_n_steps, batch, num_prompts or 1) < 1:
            raise ValueError(
                f"an evaluation needs prompts, and numbers of at least 1: got {len(prompts)} prompts, "
                f"every_n_steps={every_n_steps}, num_prompts={num_prompts}, batch={batch}"
            )
        count = min(num_prompts or len(prompts), len(prompts))
        self.prompts = [prompts[i * len(prompts) // count] for i in range(count)]
        self.every_n_steps = every_n_steps
        self.metric = metric
        self.name = name
        self.batch = batch
        self.seed = seed
        self._done = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fail now rather than after an hour.

        Raises:
            FileNotFoundError: when the metric lacks files.
            ValueError: for a module that draws no pictures.

        """
        missing = list(self.metric.iterate_missing())
        if missing:
            raise FileNotFoundError("\n".join(missing))
        if getattr(pl_module, "decoder", None) is None:
            raise ValueError(
                f"callbacks.evaluate draws pictures, but task module {type(pl_module).__name__} has no decoder"
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Evaluate if it is time."""
        step = trainer.global_step
        if step == self._done or step % self.every_n_steps:
            return
        self._done = step
        training = pl_module.training
        ema = averages(trainer)
        pl_module.eval()
        with (
            torch.no_grad(),
            ema.swapped(pl_module) if ema else nullcontext(),
            trainer.precision_plugin.val_step_context(),
        ):
            results = self.score(pl_module, trainer.global_rank, trainer.world_size)
        pl_module.train(training)
        for logger in trainer.loggers:
            logger.log_metrics(results, step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in results.items()})

    def score(self, module: Any, rank: int = 0, world: int = 1) -> dict[str, float]:
        """Draw this rank's share, score, and name the results for loggers."""
        decoder = module.decoder(module.transformer, module.tokenizer, module.schedule)
        empty = module.text_encoder([""])
        numbered = list(enumerate(self.prompts))
        share = numbered[rank::world]
        self.metric.reset()  # type: ignore[attr-defined]
        # As many rounds on every rank: drawing with a model that is spread over ranks takes all of them.
        for first in range(0, len(numbered[::world]), self.batch):
            counted = share[first : first + self.batch]
            group = counted or numbered[:1]
            condition = module.text_encoder([record["prompt"] for _, record in group])
            state = decoder(condition, empty, [self.seed + place for place, _ in group])
            images = decoder.images(state).float().clamp(0, 1)
            if isinstance(self.metric, nn.Module):  # no part of the module that Lightning moves
                self.metric.to(images.device)
            if counted:
                self.metric.update(images, [record for _, record in counted])
        if not share:  # more ranks than prompts: this one has to take part in the gathering all the same
            self.metric.update(images[:0], [])
        results = self.metric.compute()
        named = {f"eval/{self.name}": float(results["value"])}
        parts = {name: value for name, value in results.items() if isinstance(value, float) and name != "value"}
        return named | {f"eval/{self.name}/{name}": value for name, value in parts.items()}
