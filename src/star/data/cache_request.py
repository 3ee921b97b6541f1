"""What the cache command was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from star.data.cache_header import KINDS

HELP = """\
Encode pictures and captions once; data=cached then trains without running tokenizer or text encoder again.

  python -m star.data.cache out=caches/shapes experiment=demo paths.data=DIR paths.tokenizer=RUN
  python -m star.data.cache out=caches/256 workers=8 paths.tokenizer=RUN data.sources.laion.urls='/shards/*.tar'
  python -m star.data.cache out=caches/256 ... kind=latents                       (data.noise=0.01 in training)
  python -m star.data.cache out=caches/256 ... data.crop=random copies=4          (several crops of each picture)
  python train.py experiment=demo data=cached data.directory=caches/shapes paths.tokenizer=RUN

Everything that train.py takes says what is encoded with what. Besides:

  out=        the folder to write; finished shards are kept, so a run that was killed goes on where it stopped
  kind=       codes (default): 2 bytes a token, of one schedule; latents: what is quantised, fp16, for any schedule that
              ends at the same size. Codes of fine scales change with differences that nobody sees: prefer latents with
              noise, or several copies, when pictures are seen many times
  copies=     draws of crop and mirroring per picture, of which training takes one at a time; default 1
  text=       auto (default): features of a frozen text encoder, fp16, real tokens alone; captions: none, as for an
              encoder that is trained along
  precision=  fp32 (default) or bf16: what the tokenizer computes in; a text encoder has its own
  workers=    processes; on GPUs several for each, so that some decode pictures while others encode; default 1
  batch=      pictures encoded together; default 32
  device=     auto (default), cpu, cuda or cuda:N
  part=       1/4: this machine writes the first of four parts of the shards; default 1/1
  overwrite=  true: throw away what other settings wrote into the folder
"""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Request:
    """What the command line asks for; see HELP.

    Attributes:
        overrides: everything that is train.py's.

    Raises:
        ValueError: for values that can't be.

    """

    out: str = ""
    kind: str = "codes"
    copies: str = "1"
    text: str = "auto"
    precision: str = "fp32"
    workers: str = "1"
    batch: str = "32"
    device: str = "auto"
    part: str = "1/1"
    overwrite: str = "false"
    overrides: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything."""
        if not self.out:
            raise ValueError("set out=FOLDER; --help explains")
        choices = {
            "kind": KINDS,
            "text": ("auto", "captions"),
            "precision": tuple(PRECISIONS),
            "overwrite": ("true", "false"),
        }
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is one of {', '.join(values)}, got {getattr(self, name)!r}")
        for name in ("copies", "workers", "batch"):
            if not getattr(self, name).isdigit() or int(getattr(self, name)) < 1:
                raise ValueError(f"{name} is a number of at least 1, got {getattr(self, name)!r}")
        numbers = self.part.split("/")
        if (
            len(numbers) != 2
            or not all(one.isdigit() for one in numbers)
            or not 1 <= int(numbers[0]) <= int(numbers[1])
        ):
            raise ValueError(f"part is I/N with 1 <= I <= N, such as 1/4, got {self.part!r}")
