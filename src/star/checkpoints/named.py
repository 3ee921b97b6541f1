"""What `pretrained=NAME weights=DIR` means: a release that conf/pretrained describes, in a folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star.checkpoints.describe import disagreements
from star.checkpoints.parts import with_tokenizer
from star.checkpoints.pretrained import is_pretrained, read_pretrained
from star.checkpoints.released import find_released, holds_refiner, import_released
from star.utils.instantiate import instantiate

log = logging.getLogger(__name__)

# What no tensor decides, or what is an object of its own.
_FREE = ("_target_", "position", "mask", "drop_path", "backend")

Config = Mapping[str, Any]


def read_named(config: Config) -> dict[str, Any]:
    """A named release as `{"state_dict": ..., "config": ...}`.

    For a folder of released files the configuration says everything that isn't a tensor, and has to fit the files. A
    converted folder describes itself; where the configuration says otherwise, one warning says so. Only where a frozen
    text encoder's weights lie (`text_encoder.weights=PATH`) is the command line's affair.

    Args:
        config: resolved: `pretrained` (name, kind, source, files), `weights` (the folder), `model`, `tokenizer`,
            `text_encoder`, `position`, `schedule`.

    Raises:
        FileNotFoundError: when files are missing.
        ValueError: without a folder, or when the files are another model's.

    """
    folder = locate_named(config)
    return _converted(folder, config) if is_pretrained(folder) else _released(folder, config)


def locate_named(config: Config) -> Path:
    """The folder of a named release, which has its files; they aren't read.

    Raises:
        FileNotFoundError: when files are missing.
        ValueError: without a folder.

    """
    group, folder = config["pretrained"], config["weights"]
    if folder is None:
        raise ValueError(
            f"pretrained={group['name']} needs weights=DIR: a folder with the files published at "
            f"{group['source']}, or one that python -m star.checkpoints.convert wrote"
        )
    if not is_pretrained(folder):
        find_released(Path(folder), group["files"], name=f"pretrained={group['name']}", source=group["source"])
    return Path(folder)


def _released(folder: Path, config: Config) -> dict[str, Any]:
    group, model = config["pretrained"], config["model"]
    name = f"pretrained={group['name']}"
    files = find_released(folder, group["files"], name=name, source=group["source"])
    schedule = instantiate(config["schedule"])
    shared: dict[str, Any] = {
        "position": instantiate(config["position"]),
        "num_heads": None if model["qk_norm"] else model["num_heads"],
    }
    generator = import_released(
        files["transformer"],
        kind=group["kind"],
        schedule=schedule,
        first_sample_text=model["first_sample_text"],
        logit_norm=model["logit_norm"],
        **shared,
    )
    found = generator["config"]["module"]["transformer"]
    if wrong := disagreements(model, found, ignored=_FREE):
        raise ValueError(
            f"{files['transformer']} isn't the model of {name} ({'; '.join(wrong)}): "
            "choose another pretrained=, or set model.KEY="
        )
    tokenizer = import_released(files["tokenizer"], kind="tokenizer", schedule=schedule)
    whole = with_tokenizer(generator, tokenizer, what=str(files["tokenizer"]))
    module = {
        "transformer": dict(model),
        "tokenizer": config["tokenizer"],
        "text_encoder": _beside(config["text_encoder"], files.get("text_encoder")),
        "schedule": config["schedule"],
    }
    whole = {**whole, "config": {**whole["config"], "module": module}}
    if holds_refiner(files["transformer"]):
        sampler = import_released(files["transformer"], kind="refiner", schedule=schedule, **shared)
        whole["state_dict"] = whole["state_dict"] | sampler["state_dict"]
        module["refiner"] = sampler["config"]["module"]["refiner"]
        log.info("the causal-driven sampler is in %s, too", files["transformer"])
    return whole


def _converted(folder: Path, config: Config) -> dict[str, Any]:
    checkpoint = read_pretrained(folder)
    module = checkpoint["config"]["module"]
    if "text_encoder" in module:
        located = _located(module["text_encoder"], config["text_encoder"])
        module = {**module, "text_encoder": located}
    differing = disagreements(config["model"], module.get("transformer", {}), ignored=_FREE)
    schedules = [instantiate(schedule) for schedule in (module["schedule"], config["schedule"])]
    if schedules[0] != schedules[1]:
        differing.append(f"schedule: {schedules[0]}, not {schedules[1]}")
    differing += [
        f"text_encoder.{line}" for line in disagreements(config["text_encoder"], module.get("text_encoder", {}))
    ]
    if differing:
        log.warning(
            "%s describes itself, and differs from pretrained=%s: %s",
            folder,
            config["pretrained"]["name"],
            "; ".join(differing),
        )
    return {**checkpoint, "config": {**checkpoint["config"], "module": module}}


def _located(own: Config, configured: Config) -> dict[str, Any]:
    """A folder's text encoder, its weights from the path that the command line gives for the same encoder."""
    weights = configured.get("weights")
    same = all(own.get(name) == configured.get(name) for name in ("_target_", "name", "layers"))
    return {**own, "weights": weights} if same and _is_path(weights) else dict(own)


def _beside(configured: Config, folder: Path | None) -> dict[str, Any]:
    """The text encoder with the weights that lie beside the generator, unless it was told where others are."""
    weights = configured.get("weights")
    if folder is None or not isinstance(weights, str) or _is_path(weights):
        return dict(configured)
    log.info("text encoder from %s", folder)
    return {**configured, "weights": str(folder)}


def _is_path(weights: Any) -> bool:
    return isinstance(weights, str) and (
        "/" in weights or Path(weights).suffix in (".safetensors", ".bin", ".pt", ".pth")
    )
