"""`python -m star.studies.windows [variants=all,local_window] [stage=1024 model.width=128 ...]`.

What leaving tokens out saves: seconds and activation memory of a training step of the generator (forward, loss,
backward, optimiser), with each of several `train_tokens`. Tokenizer and text encoder are left out: random codes and
texts stand for what they give. Any other word is one of train.py's: stage=, model=, train_tokens.windows=...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from star.models.transformer import STARTransformer
from star.objectives.teacher_forcing import TeacherForcing
from star.schedule import ScaleSchedule
from star.studies import command
from star.studies.memory import AllocationWatch
from star.types import Condition
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate

HELP = f"""{__doc__}
Settings, and what they are unless given:
  variants=all,local_window  of conf/train_tokens; ratios are to the first
  repeats=3            timed steps of each; they take turns
  text_tokens=20       length of the texts
  precision=float32    or bfloat16, float16: of autocast
  device=cpu
  out=FILE.json        keep the numbers
  stage=1024 model=nano model.width=128 model.num_heads=2 model.depth=2 batch_size=1 text_encoder=word_transformer
"""
OWN: dict[str, Callable[[str], Any]] = {
    "variants": command.words,
    "repeats": command.count,
    "text_tokens": command.count,
    "precision": str,
    "device": str,
    "out": Path,
}
DEFAULTS: dict[str, Any] = {"variants": ["all", "local_window"], "repeats": 3, "text_tokens": 20}
DEFAULTS |= {"precision": "float32", "device": "cpu", "out": None}
MODEL = ("model.width=128", "model.num_heads=2", "model.depth=2", "batch_size=1", "text_encoder=word_transformer")
OVERRIDES = ("stage=1024", "model=nano", *MODEL)


def study(arguments: Sequence[str]) -> None:
    """Measure and show."""
    given, overrides = command.split_arguments(arguments, OWN)
    settings = DEFAULTS | given
    configs = {
        name: plain(compose("train", [*OVERRIDES, f"train_tokens={name}", *overrides])) for name in settings["variants"]
    }
    config = next(iter(configs.values()))
    torch.manual_seed(0)
    step = Step(
        instantiate(config["model"]),
        instantiate(config["schedule"]),
        batch=config["batch_size"],
        text_tokens=settings["text_tokens"],
        precision=command.dtype(settings["precision"]),
        device=settings["device"],
    )
    objectives = {name: instantiate(one["module"]["objective"]) for name, one in configs.items()}
    title = f"a step on {step.schedule.total} tokens, width {step.transformer.width}, depth {step.transformer.depth}"
    command.present(title, measure(step, objectives, settings["repeats"]), settings["out"], settings)


class Step:
    """A training step of a generator on made-up tokens and texts.

    Args:
        transformer: what is trained.
        schedule: the scales.
        batch: samples, `B`.
        text_tokens: length of the texts, `T`.
        precision: of autocast; fp32 for none.
        device: where.

    """

    def __init__(
        self,
        transformer: STARTransformer,
        schedule: ScaleSchedule,
        *,
        batch: int,
        text_tokens: int,
        precision: torch.dtype,
        device: str,
    ) -> None:
        self.transformer = transformer.to(device).train()
        self.schedule = schedule
        self.precision = precision
        self.device = device
        classes = transformer.head.logits.out_features
        self.codes = [torch.randint(classes, (batch, length), device=device) for length in schedule.lengths]
        inputs = schedule.total - schedule.lengths[0]
        x_in = torch.randn(batch, inputs, transformer.embed.in_features, device=device)
        quantizer = SimpleNamespace(teacher_forcing=lambda codes, schedule: x_in)
        self.tokenizer: Any = SimpleNamespace(quantizer=quantizer)
        self.condition = self._texts(batch, text_tokens)
        self.optimizer = torch.optim.AdamW(transformer.parameters())

    def _texts(self, batch: int, length: int) -> Condition:
        model: Any = self.transformer
        pooled = torch.randn(batch, model.start.in_features, device=self.device)
        cross = model.blocks[0].cross_attention
        if cross is None:
            return Condition(pooled)
        context = torch.randn(batch, length, cross.kv.in_features, device=self.device)
        return Condition(pooled, context, torch.ones(batch, length, dtype=torch.bool, device=self.device))

    def __call__(self, objective: TeacherForcing) -> Tensor:
        """One step; the loss."""
        with torch.autocast(self.device, self.precision, enabled=self.precision != torch.float32):
            report = objective(self.transformer, self.tokenizer, self.codes, self.condition, self.schedule)
        report.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)  # gradients stay allocated, so they don't count as activations
        return report.total.detach()


def measure(step: Step, objectives: dict[str, TeacherForcing], repeats: int) -> list[dict[str, Any]]:
    """One row for each objective; ratios are to the first."""
    runs = {name: lambda objective=objective: step(objective) for name, objective in objectives.items()}
    seconds = command.interleaved(runs, repeats=repeats)
    rows: list[dict[str, Any]] = []
    for name, objective in objectives.items():
        kept = objective.train_tokens(step.schedule, 1)
        with AllocationWatch() as watch:
            step(objective)
        row = {
            "train_tokens": name,
            "tokens": step.schedule.total if kept is None else kept.shape[-1],
            "seconds": command.median(seconds[name]),
            "peak MiB": watch.peak / 2**20,
        }
        first = rows[0] if rows else row
        row["times faster"] = first["seconds"] / row["seconds"]
        row["times less memory"] = first["peak MiB"] / row["peak MiB"]
        row["largest tensor"] = "x".join(map(str, watch.shape))
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command.run(HELP, study, arguments)


if __name__ == "__main__":
    main()
