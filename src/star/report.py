"""Cards side by side: `python -m star.report EVALUATION EVALUATION ... [out=FOLDER]`."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from star.utils.cli import readable_errors

log = logging.getLogger(__name__)

Card = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """The cards of one evaluation.

    Attributes:
        name: what the tables call it.
        cards: metric -> card.

    """

    name: str
    cards: dict[str, Card] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """The number of a metric, None when it was not computed."""
        card = self.cards.get(metric)
        return None if card is None else card.get("value")


def read_run(path: Path) -> Run:
    """The cards of a folder that evaluate.py wrote, or of a card.json.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when the file is no card.

    """
    file = path / "card.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no card at {file}: give folders that evaluate.py wrote (out=), or card.json files")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        cards = content["cards"] if "cards" in content else {content["metric"]: content}
        for card in cards.values():
            _key(card["metric"], card)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no card of evaluate.py: {type(error).__name__} {error}") from error
    return Run(file.parent.name, cards)


def named(runs: Sequence[Run], paths: Sequence[Path]) -> list[Run]:
    """The same runs under names that differ: a parent's name is added where folders are called alike."""
    counts = {run.name: sum(other.name == run.name for other in runs) for run in runs}
    return [
        Run(f"{path.resolve().parent.name}/{run.name}" if counts[run.name] > 1 else run.name, run.cards)
        for run, path in zip(runs, paths, strict=True)
    ]


def lines(runs: Sequence[Run]) -> list[list[str]]:
    """A table: a row per metric and protocol, a column per run; the first row is its head.

    Numbers of other settings than the protocol's, or compared with another reference, have a row of their own, so that
    they can't be mistaken for it.
    """
    keys: dict[tuple[str, str], None] = {}
    for run in runs:
        keys |= {_key(name, card): None for name, card in run.cards.items()}
    table = [["metric", *[run.name for run in runs]]]
    for key in keys:
        found = [next((card for name, card in run.cards.items() if _key(name, card) == key), None) for run in runs]
        table.append([f"{key[0]} ({key[1]})" if key[1] else key[0], *[_cell(card) for card in found]])
    return table


def _key(name: str, card: Card) -> tuple[str, str]:
    if card["status"] != "done":
        return name, card["status"]
    compared = card.get("facts", {}).get("reference")
    said = [card["label"], *([f"to {compared}"] if compared else []), *card.get("deviations", [])]
    return name, ", ".join(said if card["standard"] else [said[0], "not standard", *said[1:]])


def _cell(card: Card | None) -> str:
    if card is None:
        return ""
    if card.get("value") is None:
        return card["status"]
    interval = card.get("interval")
    bounds = f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
    return f"{card['value']:.4g}{bounds}"


def markdown(table: Sequence[Sequence[str]]) -> str:
    """The table as text."""
    rule = "|" + "---|" * len(table[0])
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    return "\n".join([rows[0], rule, *rows[1:]]) + "\n"


def plot(runs: Sequence[Run], out: Path) -> list[Path]:
    """Bars of every metric that has categories or tasks, and quality against time; returns the files."""
    import matplotlib as mpl

    mpl.use("Agg")
    files = []
    for metric in dict.fromkeys(name for run in runs for name in run.cards):
        parts = {run.name: _parts(run.cards[metric]) for run in runs if metric in run.cards}
        parts = {name: values for name, values in parts.items() if values}
        if parts:
            files.append(_bars(metric, parts, out / f"{metric}_parts.png"))
    seconds = {run.name: run.value("latency") for run in runs}
    timed = [run for run in runs if seconds[run.name] is not None]
    for metric in dict.fromkeys(name for run in timed for name in run.cards if name != "latency"):
        values = {run.name: run.value(metric) for run in timed}
        points = [(name, seconds[name] or 0.0, value) for name, value in values.items() if value is not None]
        if points:
            files.append(_scatter(metric, points, out / f"{metric}_against_time.png"))
    return files


def _parts(card: Card) -> dict[str, float]:
    results = card.get("results", {})
    found = results.get("categories") or results.get("tasks") or results.get("parts") or {}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def _bars(metric: str, parts: Mapping[str, Mapping[str, float]], file: Path) -> Path:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for values in parts.values() for name in values))
    figure = Figure(figsize=(max(5, 0.8 * len(names)), 3.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(parts)
    for i, (run, values) in enumerate(parts.items()):
        axes.bar(
            [j + i * width for j in range(len(names))], [values.get(name, 0.0) for name in names], width, label=run
        )
    axes.set_xticks([j + 0.4 - width / 2 for j in range(len(names))], names, rotation=30, ha="right")
    axes.set_title(metric)
    axes.legend()
    figure.savefig(file, dpi=130)
    return file


def _scatter(metric: str, points: Iterable[tuple[str, float, float]], file: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, seconds, value in points:
        axes.scatter([seconds], [value])
        axes.annotate(name, (seconds, value), xytext=(4, 4), textcoords="offset points")
    axes.set_xlabel("seconds per picture (batch 1)")
    axes.set_ylabel(metric)
    figure.savefig(file, dpi=130)
    return file


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(
        prog="python -m star.report", description="Puts the cards of several evaluations side by side."
    )
    parser.add_argument(
        "runs", nargs="+", metavar="EVALUATION", help="folders that evaluate.py wrote, or card.json files"
    )
    parser.add_argument("--out", help="folder for report.md and plots; also as out=FOLDER; default outputs/report")
    parsed = parser.parse_args(arguments)
    given = [word for word in parsed.runs if word.startswith("out=")]
    out = Path(parsed.out or (given[-1].removeprefix("out=") if given else "outputs/report"))
    paths = [Path(word) for word in parsed.runs if not word.startswith("out=")]
    if not paths:
        parser.error("give at least one EVALUATION: a folder that evaluate.py wrote, or a card.json")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        runs = named([read_run(path) for path in paths], paths)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    table = lines(runs)
    out.mkdir(parents=True, exist_ok=True)
    files = plot(runs, out)
    pictures = "".join(f"\n![{file.stem}]({file.name})\n" for file in files)
    (out / "report.md").write_text("# Evaluations\n\n" + markdown(table) + pictures, encoding="utf-8")
    shown = Table(*table[0])
    for row in table[1:]:
        shown.add_row(*row)
    Console().print(shown)
    log.info("%s", out / "report.md")


if __name__ == "__main__":
    with readable_errors():
        main()
