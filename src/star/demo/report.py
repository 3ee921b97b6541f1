"""report.json and report.html: what came out, how long it took, and what it looks like."""

from __future__ import annotations

import base64
import html
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from star.demo.figures import read_series
from star.demo.recipes import Recipe, configuration
from star.utils.files import write_atomically

if TYPE_CHECKING:
    from star.demo.steps import Steps

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .6rem 0 1.4rem; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
p.note { color: #666; }
"""
COLUMNS = {
    "drawn": "held-out captions",
    "seen": "seen pairs",
    "ceiling": "tokenizer's ceiling",
    "renders": "true renders",
    "shuffled": "shuffled captions",
}
EXPLANATION = (
    "Share of images that show what their caption says, by task; overall is the mean of the tasks. The colours of the "
    "row <i>colors</i> never occurred with that shape in training. The ceiling is what the judge makes of true renders "
    "after a round trip through the tokenizer; shuffled compares the same images with other captions (chance). "
    "Candidates drawn for an image, of which the model itself kept the one that fits its caption best: {candidates}."
)

ASKED = (
    "Is a true picture likelier under its own caption than under one that differs in a single fact? 1 is perfect, 0.5 "
    "chance; nats are by how much. <i>binding</i> exchanges two figures' colours, <i>relation</i> their places: all "
    "words stay, so a model for which captions are bags of words can't tell."
)


def write(recipe: Recipe, steps: Steps, *, figures: Sequence[tuple[str, Path]]) -> None:
    """Write both files into the recipe's folder."""
    facts = collect(recipe, steps)
    write_atomically(recipe.out / "report.json", lambda path: _text(path, json.dumps(facts, indent=2)))
    write_atomically(recipe.out / "report.html", lambda path: _text(path, page(recipe.title, facts, figures)))


def collect(recipe: Recipe, steps: Steps) -> dict[str, Any]:
    """Everything that was measured."""
    facts: dict[str, Any] = {
        "seconds": {name: round(step["seconds"], 1) for name, step in steps.done.items()},
        "peak_memory_gib": round(max(step.get("peak_memory_gib", 0.0) for step in steps.done.values()), 2),
        "machine": {
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "tokenizer": last_values(recipe.tokenizer_run / "metrics.csv", "val/"),
        "generator": last_values(recipe.generator_run / "metrics.csv", "val/"),
    }
    if recipe.refined is not None:
        facts["refiner"] = last_values(recipe.refiner_run / "metrics.csv", "val/")
    facts["seconds"]["total"] = round(sum(facts["seconds"].values()), 1)
    scored = recipe.evaluation / "card.json"
    if recipe.scored and scored.is_file():
        card = json.loads(scored.read_text())
        results = {"value": card["value"], **card["results"]}
        drawn = {name: results[name] for name in ("value", "tasks", "strict", "images", "num_images")}
        facts["alignment"] = {"drawn": drawn} | {name: results[name] for name in COLUMNS if name in results}
        facts["alignment"]["candidates"] = configuration(recipe.training("generator"))["sampling"]["best_of"]["count"]
    asked = recipe.understanding / "card.json"
    if recipe.scored and asked.is_file():
        card = json.loads(asked.read_text())
        facts["understanding"] = {"value": card["value"], **card["results"]}
    return facts


def last_values(metrics: Path, prefix: str) -> dict[str, float]:
    """The last value of every curve whose name begins with the prefix; scales that aren't trained have none.

    Of a training whose folder is gone, there are none at all.
    """
    if not metrics.is_file():
        return {}
    return {
        name[len(prefix) :]: values[-1][1]
        for name, values in read_series(metrics).items()
        if name.startswith(prefix) and not math.isnan(values[-1][1])
    }


def page(title: str, facts: Mapping[str, Any], figures: Sequence[tuple[str, Path]]) -> str:
    """One HTML page that needs no other file."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    if "alignment" in facts:
        explained = EXPLANATION.format(candidates=facts["alignment"]["candidates"])
        body += [f"<h2>Alignment</h2><p>{explained}</p>", alignment_table(facts["alignment"])]
    if "understanding" in facts:
        body += [f"<h2>Understanding</h2><p>{ASKED}</p>", understanding_table(facts["understanding"])]
    body += [
        f"<h2>{html.escape(name)}</h2><img alt='{html.escape(name)}' src='{_inline(file)}'>"
        for name, file in figures
        if file.is_file()
    ]
    measured = {
        "tokenizer": "Tokenizer, held-out images",
        "generator": "Generator, held-out pairs",
        "refiner": "Refiner, held-out pairs, half of the tokens known",
    }
    for part, title in measured.items():
        if values := facts.get(part):  # none of a training whose folder is gone
            rows = {name: [value] for name, value in sorted(values.items())}
            body += [f"<h2>{title}</h2>", table({"": ["value"]}, rows)]
    body += ["<h2>Time</h2>", table({"step": ["seconds"]}, {name: [value] for name, value in facts["seconds"].items()})]
    machine = ", ".join(f"{name} {value}" for name, value in facts["machine"].items())
    body.append(f"<p class='note'>Largest process: {facts['peak_memory_gib']} GiB; {html.escape(machine)}.</p>")
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(body)}</body></html>"


def alignment_table(alignment: Mapping[str, Any]) -> str:
    """Tasks by what was judged."""
    columns = [name for name in COLUMNS if name in alignment]
    rows = {"overall": [alignment[name]["value"] for name in columns]}
    rows |= {
        task: [alignment[name]["tasks"].get(task, float("nan")) for name in columns]
        for task in alignment["drawn"]["tasks"]
    }
    return table({"": [COLUMNS[name] for name in columns]}, rows)


def understanding_table(understanding: Mapping[str, Any]) -> str:
    """Kinds of facts by how often, and how surely, the true caption is preferred."""
    nats = understanding["nats"]
    rows = {"mean": [understanding["value"], sum(nats.values()) / len(nats)]}
    rows |= {kind: [share, nats[kind]] for kind, share in understanding["kinds"].items()}
    return table({"": ["share right", "nats"]}, rows)


def table(head: Mapping[str, Sequence[str]], rows: Mapping[str, Sequence[float]]) -> str:
    """An HTML table with one name and several numbers a row."""
    (corner, titles), *_ = head.items()
    cells = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    lines = "".join(
        f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{value:.3f}</td>' for value in values)}</tr>"
        for name, values in rows.items()
    )
    return f"<table><tr><th>{html.escape(corner)}</th>{cells}</tr>{lines}</table>"


def _inline(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
