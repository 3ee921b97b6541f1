"""Released weights into a folder of ours, and back: `python -m star.checkpoints.convert --help`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from star.checkpoints import io
from star.checkpoints.build import build
from star.checkpoints.describe import describe
from star.checkpoints.parts import identity_of, with_tokenizer
from star.checkpoints.pretrained import is_pretrained, write_pretrained
from star.checkpoints.released import KINDS, holds_tokenizer, import_released
from star.checkpoints.request import BOOLEANS, DTYPES, HELP, Request, composed, parse
from star.checkpoints.to_official import write_official
from star.checkpoints.var_to_star import Fate, TransferReport, star_from_var
from star.nn.position import AbsolutePosition, Rotary2D
from star.schedule import ScaleSchedule
from star.utils.command import run_command
from star.utils.files import write_atomically
from star.utils.instantiate import instantiate, instantiate_trusted

log = logging.getLogger(__name__)


def convert(request: Request) -> None:
    """Do what the request asks for.

    Raises:
        FileNotFoundError: when what is read isn't there.
        FileExistsError: when what is written is there already.
        ValueError: when something doesn't fit; nothing is written then.

    """
    if not Path(request.source).exists():
        raise FileNotFoundError(f"source={request.source} does not exist")
    if request.to == "official":
        write_official(io.read(request.source, mmap=True), Path(request.out), kind=request.kind, what=request.source)
    elif io.is_ours(request.source):
        if request.kind is not None:
            raise ValueError(
                f"{request.source} is a checkpoint of this project already: leave kind= out, or set to=official"
            )
        checkpoint = io.read(request.source, mmap=True)
        config = io.config(checkpoint, request.source)
        write(request, {"state_dict": io.weights(checkpoint), "config": config})
    else:
        write(request, from_release(request))
    log.info("written: %s", request.out)


def from_release(request: Request) -> dict[str, Any]:
    """A released file as a checkpoint of ours, with its text encoder's configuration, its preset and its tokenizer."""
    if request.kind is None:
        raise ValueError(f"set kind= to what {request.source} is: {', '.join(KINDS)}")
    configs = composed(request)
    if is_pretrained(request.out):  # a part that is added has the folder's schedule
        configs.setdefault("schedule", instantiate(io.read(request.out)["config"]["module"]["schedule"]))
    position = _position(request, configs)
    checkpoint = import_released(
        request.source,
        kind=request.kind,
        schedule=None if request.to == "star" else configs.get("schedule"),
        position=None if request.to == "star" else position,
        first_sample_text=BOOLEANS.get(str(request.first_sample_text)),
        logit_norm=BOOLEANS[request.logit_norm],
        num_heads=None if request.num_heads is None else int(request.num_heads),
    )
    if request.kind not in ("star", "var"):
        return checkpoint
    if request.to == "star":
        checkpoint = as_star(request, checkpoint, configs, position)
    config = checkpoint["config"]
    if request.position == "absolute" and "Rotary" in config["module"]["transformer"]["position"]["_target_"]:
        raise ValueError(f"{request.source} has no learned positions: leave position=absolute out")
    module = {name: configs[name] for name in ("text_encoder",) if name in configs} | config["module"]
    widths = [module[name].get("pooled_width") for name in ("transformer", "text_encoder")]
    if None not in widths and widths[0] != widths[1]:
        log.warning("the generator takes texts of width %s, this text encoder gives %s: choose text_encoder=", *widths)
    checkpoint["config"] = {**config, "module": module, "sampling": configs["sampling"]}
    return _with_its_tokenizer(request, checkpoint)


def as_star(
    request: Request, var: Mapping[str, Any], configs: Mapping[str, Any], position: Rotary2D | None
) -> dict[str, Any]:
    """VAR's checkpoint as the beginning of a text-conditional one."""
    module, text = var["config"]["module"], configs["text_encoder"]
    model: Any = build(
        module["transformer"], io.part(var["state_dict"], "transformer."), what=request.source, precision=torch.float32
    )
    schedule: ScaleSchedule = configs.get("schedule") or instantiate(module["schedule"])
    learned = AbsolutePosition(model.width, schedule=schedule) if request.position == "absolute" else None
    star, report = star_from_var(
        model,
        schedule=schedule,
        pooled_width=text["pooled_width"],
        context_width=text["context_width"],
        position=learned or position,
        seed=int(request.seed),
    )
    classes = var["state_dict"]["text_encoder.embedding.weight"]
    dropped = Fate("text_encoder.embedding.weight", tuple(classes.shape), "dropped")
    log.info("%s", TransferReport((*report.fates, dropped)))
    state = {f"transformer.{name}": value for name, value in star.state_dict().items()}
    module = {"transformer": describe(star), "schedule": describe(schedule)}
    notes = {"origin": f"class-conditional VAR ({Path(request.source).name}); the text branch starts silent"}
    return {"state_dict": state, "config": {"task": "generator", "module": module, "notes": notes}}


def _position(request: Request, configs: Mapping[str, Any]) -> Rotary2D | None:
    if "position" not in configs:
        return None
    position = instantiate(configs["position"])
    if not isinstance(position, Rotary2D):
        raise ValueError(f"position={request.position} is none of a released model: leave it out, or name a rotary one")
    return position


def _with_its_tokenizer(request: Request, checkpoint: dict[str, Any]) -> dict[str, Any]:
    source = request.tokenizer or (request.source if holds_tokenizer(request.source) else None)
    if source is None:
        log.warning("no tokenizer: add one with kind=tokenizer out=%s before drawing pictures", request.out)
        return checkpoint
    if not Path(source).exists():
        raise FileNotFoundError(f"tokenizer={source} does not exist")
    if io.is_ours(source):
        tokenizer = io.read(source, mmap=True)
    else:
        schedule = instantiate(checkpoint["config"]["module"]["schedule"])
        tokenizer = import_released(source, kind="tokenizer", schedule=schedule)
    return with_tokenizer(checkpoint, tokenizer, what=source)


def write(request: Request, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint of ours: a folder, or one file whose name ends in .ckpt."""
    dtype = None if request.dtype is None else DTYPES[request.dtype]
    out = Path(request.out)
    if out.suffix == ".ckpt":
        if out.exists():
            raise FileExistsError(f"{out} is there already: choose another out=")
        narrow = ("transformer.", "refiner.")
        state = {k: v.to(dtype) if dtype and k.startswith(narrow) else v for k, v in checkpoint["state_dict"].items()}
        whole = {"state_dict": state, "config": checkpoint["config"], "global_step": 0}
        write_atomically(out, lambda path: torch.save(whole, path))
        return
    encoder = checkpoint["config"]["module"].get("text_encoder")
    identity = None if encoder is None else identity_of(instantiate_trusted(encoder))
    write_pretrained(out, checkpoint, text_encoder_id=identity, dtype=dtype)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    run_command(HELP, lambda given: convert(parse(given)), arguments)


if __name__ == "__main__":
    main()
