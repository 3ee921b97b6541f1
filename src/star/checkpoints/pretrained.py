"""Our own format for finished weights: a folder of .safetensors files and a `config.json` that says what they are.

Read, such a folder is what a run's checkpoint is to its readers, `{"state_dict": ..., "config": ...}`: whatever opens
the one opens the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star.checkpoints.fingerprint import fingerprint
from star.checkpoints.tensors import read_tensors, write_tensors
from star.schedule import ScaleSchedule
from star.utils.files import write_atomically

CONFIG = "config.json"
FORMAT = "star"
VERSION = 1
PARTS = ("transformer", "tokenizer", "text_encoder", "refiner")

Checkpoint = dict[str, Any]


def is_pretrained(path: str | Path) -> bool:
    """Whether a path is a folder of this format."""
    return _record(Path(path)) is not None


def read_pretrained(directory: str | Path) -> Checkpoint:
    """Open a folder: tensors (mapped, named `transformer.blocks.0...`) under `state_dict`, and their `config`.

    Raises:
        FileNotFoundError: when it isn't such a folder, or one of its files is missing.
        ValueError: when it was written by a later version, or a file is damaged.

    """
    folder = Path(directory)
    record = _record(folder)
    if record is None:
        raise FileNotFoundError(f"{folder} is no folder of converted weights: it has no {CONFIG} of this format")
    if record.get("format_version") != VERSION:
        raise ValueError(
            f"{folder} is of version {record.get('format_version')} of the format, this code reads version {VERSION}"
        )
    needed = ("schedule", "files", *(() if record.get("transformer") is None else ("position",)))
    if lacking := [name for name in needed if record.get(name) is None]:
        raise ValueError(f"{folder / CONFIG} is damaged: it has no {', '.join(lacking)}")
    module = {name: record[name] for name in ("schedule", *PARTS) if record.get(name) is not None}
    if "transformer" in module:
        module["transformer"] = {**module["transformer"], "position": record["position"]}
    state = {
        f"{part}.{name}": tensor
        for part in PARTS
        if _file(part) in record["files"]
        for name, tensor in read_tensors(folder / _file(part)).items()
    }
    task = "generator" if "transformer" in module else "sampler" if "refiner" in module else "tokenizer"
    facts = {name: record.get(name) for name in ("kind", "tokenizer_hash", "generator_hash", "notes")}
    sampling = {} if record.get("sampling") is None else {"sampling": record["sampling"]}
    return {"state_dict": state, "config": {"task": task, "module": module, **sampling, **facts}}


def write_pretrained(
    directory: str | Path,
    checkpoint: Mapping[str, Any],
    *,
    text_encoder_id: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder, or add parts to one that has others; `config.json` comes last, so that half a folder isn't one.

    Args:
        directory: where; made if it isn't there.
        checkpoint: what `read_pretrained` returns, or a run's checkpoint, of which the models' part is kept.
        text_encoder_id: what names a frozen text encoder's features, for records.
        dtype: of generator and refiner in the files; tokenizer and text encoder keep theirs.

    Raises:
        FileExistsError: when the folder is something else, or has one of the parts already.
        ValueError: when its schedule is another one.

    """
    folder = Path(directory)
    module = checkpoint["config"]["module"]
    parts = [part for part in PARTS if part in module]
    state = {part: _part(checkpoint["state_dict"], part) for part in parts}
    before = _before(folder, module, parts)
    stored = [part for part in parts if state[part]]
    for part in stored:
        narrow = dtype if part in ("transformer", "refiner") else None
        write_tensors(folder / _file(part), state[part], dtype=narrow)
    record = _merged(before, checkpoint["config"], [_file(part) for part in stored])
    if text_encoder_id is not None:
        record["text_encoder_id"] = text_encoder_id
    if "tokenizer" in parts:
        record["tokenizer_hash"] = fingerprint(state["tokenizer"])
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(folder / CONFIG, lambda path: _write(path, text))


def _merged(before: Mapping[str, Any], config: Mapping[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """The `config.json` of what is there already and what is added."""
    module = config["module"]
    record: dict[str, Any] = {"format": FORMAT, "format_version": VERSION, "kind": None}
    record |= {"schedule": module["schedule"], "position": None}
    record |= {part: None for part in PARTS} | {"tokenizer_hash": None, "text_encoder_id": None, "sampling": None}
    record |= before
    record |= {part: module[part] for part in PARTS if part in module}
    if "transformer" in module:
        transformer = dict(module["transformer"])
        record["position"] = transformer.pop("position")
        record["transformer"] = transformer
    if config.get("sampling") is not None:
        record["sampling"] = config["sampling"]
    if "refiner" in module and "transformer" not in module and config.get("generator_hash") is not None:
        record["generator_hash"] = config["generator_hash"]
    record["kind"] = _kind(record)
    record["files"] = [*before.get("files", ()), *files]
    record["notes"] = {**before.get("notes", {}), **(config.get("notes") or {})}
    return record


def _kind(record: Mapping[str, Any]) -> str:
    if record["transformer"] is not None:
        return "star" if record["transformer"].get("adaptive_norm", "none") == "none" else "var"
    return "refiner" if record["refiner"] is not None else "tokenizer"


def _before(folder: Path, module: Mapping[str, Any], parts: list[str]) -> dict[str, Any]:
    """The record of the folder as it is, once it is sure that the new parts fit beside it."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: give a folder")
    if (folder / CONFIG).exists() and not is_pretrained(folder):
        raise FileExistsError(f"{folder / CONFIG} is something else's (a run directory's?): choose another folder")
    taken = [_file(part) for part in parts if (folder / _file(part)).exists()]
    if taken:
        raise FileExistsError(f"{folder} already has {', '.join(taken)}: choose another folder, or remove what it has")
    before = _record(folder) or {}
    if before and _schedule(before) != _schedule(module):
        raise ValueError(f"{folder} is of the schedule '{_schedule(before)}', what is added of '{_schedule(module)}'")
    return before


def _file(part: str) -> str:
    return f"{part}.safetensors"


def _schedule(configs: Mapping[str, Any]) -> ScaleSchedule:
    config = configs["schedule"]
    return ScaleSchedule(tuple(config["sizes"]), tuple(config.get("levels") or ()))


def _record(folder: Path) -> dict[str, Any] | None:
    """The folder's `config.json`, or None where it has none of this format."""
    file = folder / CONFIG
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def _part(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name[len(part) + 1 :]: value for name, value in state.items() if name.startswith(f"{part}.")}


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
