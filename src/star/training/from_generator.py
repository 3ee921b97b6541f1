"""The frozen generator under a sampler's training: found, checked and loaded (task=sampler init_from=GENERATOR)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from star.checkpoints import io
from star.checkpoints.stages import schedule_of
from star.training.sampler_module import FROZEN, SamplerModule

log = logging.getLogger(__name__)

# What changes nothing about a frozen model.
_FREE = ("drop_path", "dropout", "backend", "zero_init")
# A text encoder's other settings say where its weights lie or how fast it is.
_ENCODER = ("_target_", "name", "layers", "pooled_width", "context_width")

Config = Mapping[str, Any]


def check_generator(config: Config) -> None:
    """Raise a ValueError or FileNotFoundError unless `init_from` names a checkpoint with a generator."""
    given = config["init_from"]
    if given is None:
        raise ValueError(
            "the sampler refines what a trained generator draws: set init_from to a run directory, checkpoint or "
            "converted folder of task=generator"
        )
    checkpoint = io.read(given, mmap=True)
    if "transformer" not in io.config(checkpoint, given)["module"] or not io.part(
        checkpoint["state_dict"], "transformer."
    ):
        raise ValueError(
            f"init_from={given} is of task={checkpoint['config'].get('task')} and has no generator: give a run "
            "directory, checkpoint or converted folder of task=generator"
        )


def load_generator(module: SamplerModule, config: Config) -> None:
    """Load generator, tokenizer and text encoder (averaged weights where there are any), and begin the refiner.

    Args:
        module: built from `config`, with random weights.
        config: resolved; `init_from` names the generator, or an earlier sampler's training, whose refiner is taken too.
            `paths.tokenizer` counts where `init_from` has no tokenizer.

    Raises:
        ValueError: when the generator isn't the one that the configuration describes, or there is no tokenizer.

    """
    given = config["init_from"]
    checkpoint = io.read(given, mmap=True)
    what = f"init_from={given}"
    wrong = differences(config["module"], checkpoint["config"]["module"])
    before = schedule_of(checkpoint)
    if before is not None and before != module.schedule:
        wrong.append(f"schedule: {before}, not {module.schedule}")
    if wrong:
        raise ValueError(
            f"{what} is another generator than this run describes ({'; '.join(wrong)}): give the options that it was "
            "trained with (stage=, model=, position=, mask=, tokenizer=, text_encoder=; of its refiner: "
            "refiner_training=)"
        )
    weights = io.weights(checkpoint)
    if not io.part(weights, "tokenizer."):
        weights |= _tokenizer(config, what)
    for name in FROZEN:
        io.load(module.get_submodule(name), io.part(weights, f"{name}."), what=f"{name} of {what}")
    refiner = io.part(weights, "refiner.")
    if refiner:
        io.load(module.refiner, refiner, what=f"refiner of {what}")
    else:
        module.begin()
    log.info("generator%s of %s", " and refiner" if refiner else "", io.find(given))


def differences(configured: Config, held: Config) -> list[str]:
    """Where a run's parts differ from those of a checkpoint, as far as both say something: `name: held, not ours`."""
    found = []
    for part in ("transformer", "tokenizer", "refiner"):
        found += _compare(configured.get(part) or {}, held.get(part) or {}, part)
    ours, theirs = (each.get("text_encoder") or {} for each in (configured, held))
    named = {name: ours[name] for name in _ENCODER if name in ours}
    return found + _compare(named, theirs, "text_encoder")


def _compare(ours: Any, theirs: Any, name: str) -> list[str]:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        shared = [key for key in ours if key in theirs and key not in _FREE]
        return [line for key in shared for line in _compare(ours[key], theirs[key], f"{name}.{key}")]
    return [] if _plain(ours) == _plain(theirs) else [f"{name}: {theirs}, not {ours}"]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _tokenizer(config: Config, what: str) -> dict[str, Any]:
    path = config["paths"]["tokenizer"]
    if path is None:
        raise ValueError(f"{what} has no tokenizer: set paths.tokenizer to the one that its generator learned from")
    state = io.weights(io.read(path, mmap=True))
    return {name: value for name, value in state.items() if name.startswith("tokenizer.")}
