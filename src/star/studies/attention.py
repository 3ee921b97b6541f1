"""`python -m star.studies.attention [stage=512] [backends=dense,prefix] [dtypes=float32,bfloat16] ...`.

Times self-attention over scales, forward and backward, one way of computing it against another, and says what the
largest tensor is that each makes: with `dense` a mask of L x L elements, with `prefix` never.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star.nn.attention import attend
from star.nn.backends import BACKENDS
from star.nn.masks import ScaleMask
from star.schedule import ScaleSchedule
from star.studies import command
from star.studies.memory import AllocationWatch
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate

HELP = f"""{__doc__}
Settings, and what they are unless given:
  stage=512            whose token maps
  backends=dense,prefix  of {", ".join(BACKENDS)}; ratios are to the first
  dtypes=float32       of float32, bfloat16, float16
  heads=16 head_width=64 batch=1
  repeats=5            timed repetitions of each; they take turns
  device=cpu
  out=FILE.json        keep the numbers
"""
OWN: dict[str, Callable[[str], Any]] = {
    "stage": str,
    "backends": command.words,
    "dtypes": command.words,
    "heads": command.count,
    "head_width": command.count,
    "batch": command.count,
    "repeats": command.count,
    "device": str,
    "out": Path,
}
DEFAULTS: dict[str, Any] = {
    "stage": "512",
    "backends": ["dense", "prefix"],
    "dtypes": ["float32"],
    "heads": 16,
    "head_width": 64,
}
DEFAULTS |= {"batch": 1, "repeats": 5, "device": "cpu", "out": None}


def study(arguments: Sequence[str]) -> None:
    """Measure and show."""
    given, rest = command.split_arguments(arguments, OWN)
    command.refuse(rest, list(OWN))
    settings = DEFAULTS | given
    if unknown := set(settings["backends"]) - set(BACKENDS):
        raise ValueError(f"unknown backends {', '.join(sorted(unknown))}: choose from {', '.join(BACKENDS)}")
    schedule = instantiate(plain(compose("train", [f"stage={settings['stage']}"]))["schedule"])
    shape = (settings["batch"], settings["heads"], schedule.total, settings["head_width"])
    rows = []
    for name in settings["dtypes"]:
        rows += measure(schedule, shape, settings["backends"], name, settings["device"], settings["repeats"])
    title = f"attention over {schedule.total} tokens, forward and backward"
    command.present(title, rows, settings["out"], settings)


def measure(
    schedule: ScaleSchedule, shape: tuple[int, ...], backends: Sequence[str], dtype: str, device: str, repeats: int
) -> list[dict[str, Any]]:
    """One row for each backend; queries and keys have unit length, as in the model."""
    visibility = ScaleMask().visibility(schedule)
    q, k, v = (torch.nn.functional.normalize(torch.randn(shape, device=device), dim=-1) for _ in range(3))
    q, k, v = (part.to(command.dtype(dtype)).requires_grad_() for part in (4 * q, k, v))

    def step(backend: str) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(attend(q, k, v, visibility, backend=backend).square().sum(), (q, k, v))

    seconds = command.interleaved({backend: step(backend) for backend in backends}, repeats=repeats)
    rows = []
    for backend in backends:
        with AllocationWatch() as watch:
            step(backend)()
        ratio = command.median(seconds[backends[0]]) / command.median(seconds[backend])
        rows.append(
            {
                "dtype": dtype,
                "backend": backend,
                "seconds": command.median(seconds[backend]),
                "times faster": ratio,
                "peak MiB": watch.peak / 2**20,
                "largest tensor": "x".join(map(str, watch.shape)),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command.run(HELP, study, arguments)


if __name__ == "__main__":
    main()
