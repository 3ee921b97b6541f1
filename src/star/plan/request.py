"""What the plan command was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from star.utils.cli import compose, conf_directory, plain
from star.utils.command import split_arguments
from star.utils.devices import DEVICES

HELP = f"""\
Say what a training of a generator takes: parameters, operations, memory by part, the largest batch, speed, GPU-hours.

  python -m star.plan stage=1024 model=d30 trainer=fsdp devices=64 gpu=a100
  python -m star.plan stage=1024 model=d30 trainer=fsdp devices=64 activation_checkpointing=full batch_size=8
  python -m star.plan stage=256 model=d16 trainer=ddp devices=8 gpu=h100 images=100000000 format=json

Everything that train.py takes says what is trained. Besides:

  devices=  how many GPUs the training has, over all machines; default 1
  gpu=      {", ".join(DEVICES)}, or cpu: this machine; default a100 (80 GB)
  mfu=      share of the GPU's peak at which products run; default 0.4. train.py logs what it reaches as mfu
  images=   how many pictures to train on; default: trainer.max_steps of them
  format=   table (default) or json: everything by name, in bytes, operations and seconds

Nothing is read but the configuration; text encoders whose files aren't here are left out of the sums, and so said.
"""
PER_MACHINE = 8


@dataclass(frozen=True)
class Request:
    """What the command line asks for; see HELP.

    Attributes:
        overrides: everything that is train.py's.

    Raises:
        ValueError: for values that can't be.

    """

    devices: str = "1"
    gpu: str = "a100"
    mfu: str = "0.4"
    images: str = ""
    format: str = "table"
    overrides: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Check what can be checked."""
        if self.gpu not in (*DEVICES, "cpu"):
            raise ValueError(f"gpu is one of {', '.join(DEVICES)} or cpu, got {self.gpu!r}")
        if self.format not in ("table", "json"):
            raise ValueError(f"format is table or json, got {self.format!r}")
        for name in ("devices", "images"):
            given = getattr(self, name)
            if given and (not given.isdigit() or int(given) < 1):
                raise ValueError(f"{name} is a number of at least 1, got {given!r}")
        try:
            share = float(self.mfu)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise ValueError(f"mfu is a share of the GPU's peak, in (0, 1], got {self.mfu!r}")

    def number(self, name: str) -> int | None:
        """A whole number, None where none was given."""
        given = getattr(self, name)
        return int(given) if given else None


def parse(arguments: Sequence[str]) -> Request:
    """A command line as a request.

    Raises:
        ValueError: for an argument that isn't KEY=VALUE.

    """
    given, overrides = split_arguments(arguments, [one.name for one in fields(Request) if one.name != "overrides"])
    return Request(**given, overrides=overrides)


def composed(request: Request) -> dict[str, Any]:
    """The configuration that train.py would run with on as many devices.

    Raises:
        ValueError: names the trainers that there are, when the one that was asked for isn't one of them.

    """
    asked = [line.partition("=")[2] for line in request.overrides if line.startswith("trainer=")]
    there = sorted(path.stem for path in (conf_directory() / "trainer").glob("*.yaml"))
    if asked and asked[-1] not in there:
        raise ValueError(f"there is no trainer={asked[-1]}, but {', '.join(there)}")
    devices = request.number("devices") or 1
    machines = -(-devices // PER_MACHINE)
    known = {line.partition("=")[0] for line in request.overrides}
    # What was said comes last, and so overrules how many devices a machine usually has.
    layout = {"trainer.devices": devices // machines, "trainer.num_nodes": machines}
    lines = [f"{name}={value}" for name, value in layout.items() if name not in known]
    return plain(compose("train", [*lines, *request.overrides]))
