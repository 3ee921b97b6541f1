"""What the convert command was asked for, and what that takes from conf/."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import OmegaConf

from star.checkpoints.released import KINDS
from star.schedule import ScaleSchedule
from star.utils.cli import compose, conf_directory
from star.utils.instantiate import instantiate

HELP = """\
Turn released weights into a folder of safetensors and config.json, or such a folder back into the released layout.

  python -m star.checkpoints.convert source=star_rope_d30_256-ar-ckpt-ep3-iter20000.pth kind=star \\
      tokenizer=vae_ch160v4096z32.pth out=weights/star_256
  python -m star.checkpoints.convert source=var_d16.pth kind=var tokenizer=vae_ch160v4096z32.pth out=weights/var_d16
  python -m star.checkpoints.convert source=vae_ch160v4096z32.pth kind=tokenizer out=weights/tokenizer
  python -m star.checkpoints.convert source=SAMPLER.pth kind=refiner out=weights/star_1024      (adds to the folder)
  python -m star.checkpoints.convert source=var_d16.pth kind=var to=star out=weights/from_var   (for init_from=)
  python -m star.checkpoints.convert source=RUN out=weights/mine                                (a run of one's own)
  python -m star.checkpoints.convert source=weights/star_256 to=official out=star_256.pth

  source=             a released .pth or .safetensors; or a run directory, .ckpt or converted folder
  kind=               star, var, tokenizer or refiner: what to take from a released file, or to write into one
  out=                the folder to write (or to add parts to); a file with to=official; a folder or .ckpt with to=star
  to=                 ours (default); official; star: a text-conditional generator that begins with VAR's weights
  schedule=           64, 256, 512, 1024, or the sides of the maps: schedule="1 2 3 4x6"; default: what the file says
  position=           an option of conf/position; default: learned positions where the file has some, else normalized
  first_sample_text=  the release's batch behaviour; default: true for kind=star, else false
  logit_norm=         LayerNorm before the logits; default true
  num_heads=          only for models without QK-norm, whose shapes don't show it
  text_encoder=       an option of conf/text_encoder, which text_encoder.KEY=VALUE changes; default openclip_vit_h14
  tokenizer=          the generator's tokenizer: what source= takes; default: the one inside of the source, if any
  sampling=           an option of conf/sampling; default topk600, for VAR topk900
  dtype=              fp32, fp16 or bf16: of generator and refiner in the folder; default: as in the file
  seed=               to=star: of the layers that begin fresh; default 0
"""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class Request:
    """What the command line asks for; see HELP.

    Attributes:
        overrides: `text_encoder.KEY=VALUE` and `position.KEY=VALUE`, for the configuration.

    Raises:
        ValueError: for values that can't be.

    """

    source: str = ""
    kind: str | None = None
    out: str = ""
    to: str = "ours"
    schedule: str | None = None
    position: str | None = None
    first_sample_text: str | None = None
    logit_norm: str = "true"
    num_heads: str | None = None
    text_encoder: str | None = None
    tokenizer: str | None = None
    sampling: str | None = None
    dtype: str | None = None
    seed: str = "0"
    overrides: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything."""
        for name in ("source", "out"):
            if not getattr(self, name):
                raise ValueError(f"set {name}=...; --help explains")
        choices = {"kind": KINDS, "to": ("ours", "official", "star"), "dtype": tuple(DTYPES)}
        choices |= dict.fromkeys(("first_sample_text", "logit_norm"), tuple(BOOLEANS))
        for name, values in choices.items():
            if getattr(self, name) not in (None, *values):
                raise ValueError(f"{name} is one of {', '.join(values)}, got {getattr(self, name)!r}")
        for name in ("num_heads", "seed"):
            if getattr(self, name) is not None and not getattr(self, name).isdigit():
                raise ValueError(f"{name} is a number, got {getattr(self, name)!r}")
        if self.to == "star" and self.kind != "var":
            raise ValueError(f"to=star begins with class-conditional VAR: set kind=var, got kind={self.kind}")

    @property
    def reads_texts(self) -> bool:
        """Whether the generator reads texts."""
        return self.kind == "star" or self.to == "star"

    @property
    def text_options(self) -> bool:
        """Whether something is said about the text encoder."""
        return self.text_encoder is not None or any(line.startswith("text_encoder.") for line in self.overrides)

    @property
    def rotary(self) -> str | None:
        """The option of conf/position that was asked for; None leaves it to the file, or asks for learned positions."""
        changed = any(line.startswith("position.") for line in self.overrides)
        return None if self.position == "absolute" else self.position or ("normalized" if changed else None)


def parse(arguments: Sequence[str]) -> Request:
    """A command line as a request.

    Raises:
        ValueError: for an argument that isn't KEY=VALUE, or a key that isn't known.

    """
    given: dict[str, str] = {}
    overrides = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"arguments are KEY=VALUE, got {argument!r}; --help explains")
        if name.startswith(("text_encoder.", "position.")):
            overrides.append(argument)
        elif name in Request.__dataclass_fields__ and name != "overrides":
            given[name] = value
        else:
            near = difflib.get_close_matches(name, Request.__dataclass_fields__, n=1)
            raise ValueError(
                f"there is no {name}=" + (f", but {near[0]}=" if near else "") + "; --help lists what there is"
            )
    return Request(**given, overrides=tuple(overrides))


def composed(request: Request) -> dict[str, Any]:
    """What the request takes from conf/: text encoder, position, preset (plain), and the schedule (an object)."""
    if request.text_options and not request.reads_texts:
        raise ValueError(f"kind={request.kind} brings what it needs of a text encoder: leave text_encoder out")
    options = _options(request)
    found: dict[str, Any] = {}
    if request.schedule is not None and "stage" not in options:
        found["schedule"] = parse_schedule(request.schedule)
    if not options:
        return found
    _check_options(options)
    config = compose("train", [*(f"{group}={option}" for group, option in options.items()), *request.overrides])
    for name in ("text_encoder", "position", "sampling"):
        if name in options:
            found[name] = OmegaConf.to_container(config[name], resolve=True)
    if "stage" in options:
        found["schedule"] = instantiate(config.schedule)
    return found


def _options(request: Request) -> dict[str, str]:
    """Which option of which group."""
    preset = "topk600" if request.reads_texts else "topk900"
    chosen = {
        "text_encoder": (request.text_encoder or "openclip_vit_h14") if request.reads_texts else None,
        "sampling": (request.sampling or preset) if request.kind in ("star", "var") else None,
        "position": request.rotary,
        "stage": request.schedule if request.schedule is not None and request.schedule.isdigit() else None,
    }
    return {group: option for group, option in chosen.items() if option is not None}


def parse_schedule(text: str) -> ScaleSchedule:
    """`1 2 3 4x6` as a schedule.

    Raises:
        ValueError: for anything else.

    """
    try:
        return ScaleSchedule(tuple(_size(part) for part in text.replace(",", " ").split()))
    except ValueError as error:
        raise ValueError(f"schedule is 256, 512, 1024, or sides like '1 2 3 4x6', got {text!r} ({error})") from error


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _check_options(options: Mapping[str, str]) -> None:
    for group, option in options.items():
        folder = conf_directory() / group
        if not (folder / f"{option}.yaml").is_file():
            key = "schedule" if group == "stage" else group
            raise ValueError(
                f"there is no {key}={option}, but {', '.join(sorted(path.stem for path in folder.glob('*.yaml')))}"
            )
