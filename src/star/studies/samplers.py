"""Samplers side by side, what known tokens are worth, and what steps cost: `python -m star.studies.samplers`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from star.studies.command import count, refuse, run, split_arguments, words
from star.studies.refiner_accuracy import measure_accuracy
from star.studies.refiner_cost import measure_cost
from star.studies.sampler_table import Comparison
from star.utils.files import write_atomically

PARTS = ("table", "accuracy", "cost")
HELP = f"""{__doc__}

  python -m star.studies.samplers
  python -m star.studies.samplers ckpt=RUN refiner=RUN_OR_FILE out=DIR parts=table,accuracy
  python -m star.studies.samplers parts=cost model=d16 stage=256

  ckpt=         the generator (outputs/demo/star.ckpt), trained on coloured shapes
  refiner=      its refiner; default: the checkpoint's own, or refiner.ckpt beside it
  out=          outputs/studies/samplers; what is there is used again
  parts=        table: top-k small (an eighth of the codebook) and large (all of it), smooth, ours, ours* on the frozen
                suite: alignment, Frechet distance and CMMD with offline features, seconds a picture
                accuracy: of unknown tokens, by the refiner and the generator alone
                cost: seconds and operations of the refiner's steps beside the generator's, random weights
  seeds=        0,1: of the table's pictures
  images=       4: per caption
  batch=        132: pictures at a time
  steps=        of refined scales, 8 or [8,15]; default: the presets'
  first_scale=  the first refined scale; default: the presets'
  pairs=        512: held-out pairs for the accuracy
  model=        d16: of the cost; stage= 256; repeats= 3

Writes samplers.json and samplers.md into out=.
"""
log = logging.getLogger("studies")

SETTINGS: dict[str, Any] = {
    "ckpt": str,
    "refiner": str,
    "out": Path,
    "parts": words,
    "seeds": lambda text: [int(word) for word in words(text)],
    "images": count,
    "batch": count,
    "steps": str,
    "first_scale": int,
    "pairs": count,
    "model": str,
    "stage": str,
    "repeats": count,
}


def study(arguments: Sequence[str]) -> None:
    """Run the parts that are asked for."""
    given, rest = split_arguments(arguments, SETTINGS)
    refuse(rest, list(SETTINGS))
    parts = given.get("parts", list(PARTS))
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"parts are some of {', '.join(PARTS)}, got {sorted(unknown)[0]!r}")
    out: Path = given.get("out", Path("outputs/studies/samplers"))
    shared = {name: given[name] for name in ("seeds", "images", "batch", "steps", "first_scale") if name in given}
    comparison = Comparison(given.get("ckpt", "outputs/demo/star.ckpt"), given.get("refiner"), out, **shared)
    file = out / "samplers.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    for part in parts:
        found[part] = _measure(part, comparison, given)
        _save(out, found)
    log.info("%s", out / "samplers.md")


def _measure(part: str, comparison: Comparison, given: Mapping[str, Any]) -> Any:
    if part == "table":
        return comparison.rows()
    if part == "accuracy":
        return measure_accuracy(
            [*comparison.model, f"batch={comparison.batch}"],
            first_scale=comparison.first_scale,
            count=given.get("pairs", 512),
        )
    return measure_cost(**{name: given[name] for name in ("model", "stage", "repeats") if name in given})


def _save(out: Path, found: Mapping[str, Any]) -> None:
    texts = {"samplers.json": json.dumps(found, indent=2) + "\n", "samplers.md": markdown(found)}
    for name, text in texts.items():
        write_atomically(out / name, lambda path, text=text: _write(path, text))  # type: ignore[misc]


def markdown(found: Mapping[str, Any]) -> str:
    """What was measured, as tables."""
    parts = []
    if "table" in found:
        samplers = table(("sampler", "alignment", "fid", "cmmd", "seconds"), found["table"])
        parts.append(f"Samplers, means over seeds\n\n{samplers}")
    if "accuracy" in found:
        shares = table(("known", "refiner", "generator", "loss"), found["accuracy"])
        parts.append(f"Accuracy on unknown tokens, by the share of known ones\n\n{shares}")
    if "cost" in found:
        cost = found["cost"]
        rows = [
            {"part": part, "seconds": cost["seconds"][part], "GFLOP": cost["operations"][part] / 1e9}
            for part in cost["seconds"]
        ]
        said = (
            f"Cost of {cost['steps']} steps at {' and '.join(cost['refined'])} tokens, {cost['model']}, stage "
            f"{cost['stage']}: {cost['ratio']:.3f} of the generator's own time; the operations say "
            f"{cost['expected']:.3f}, the bar is {cost['bar']:.3f}"
        )
        parts.append(f"{said}\n\n" + table(("part", "seconds", "GFLOP"), rows))
    return "\n".join(parts)


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *([_shown(row[column]) for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    run(HELP, study, arguments)


if __name__ == "__main__":
    main()
