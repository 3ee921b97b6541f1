"""The report of one command: a page with every card, and pictures to look at."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from star.evaluation.cards import Result
from star.evaluation.pictures import Picture

Card = Mapping[str, Any]

_SHOWN_SIDE = 192
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .7rem 0 }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
th { font-weight: 600; color: #555 } .value { font-size: 1.7rem; font-weight: 650 } .warn { color: #a33 }
.grid { display: flex; flex-wrap: wrap; gap: .7rem } figure { margin: 0; width: 8.5rem }
figcaption { font-size: .75rem; color: #555 }
img { width: 8.5rem; image-rendering: pixelated } details { margin: .4rem 0 } code { font-size: .85em }
.bar { background: #6b8fb8; height: .8rem; display: inline-block }
"""


def write_report(out: Path, cards: Mapping[str, Card], results: Mapping[str, Result]) -> None:
    """Write `report.html` (one file, pictures inside) and `report.txt`."""
    out.mkdir(parents=True, exist_ok=True)
    parts = [_section(card, results.get(name)) for name, card in cards.items()]
    page = f"<!doctype html><meta charset=utf-8><title>Evaluation</title><style>{_STYLE}</style><h1>Evaluation</h1>"
    (out / "report.html").write_text(page + "".join(parts), encoding="utf-8")
    (out / "report.txt").write_text("\n".join(as_text(card) for card in cards.values()), encoding="utf-8")


def as_text(card: Card) -> str:
    """A card as lines of text."""
    return "".join(f"{name:32} {value}\n" for name, value in rows(card))


def headline(card: Card) -> str:
    """The number with its interval, or that there is none, on one line."""
    if card["status"] == "missing":
        return "not computed"
    _, (label, value), *_ = rows(card)
    return f"{label} {value}"


def rows(card: Card) -> Iterator[tuple[str, str]]:
    """What a card says, most important first: (name, value) in words."""
    yield "metric", str(card["metric"])
    if card["status"] == "missing":
        yield "status", f"not computed: {' | '.join(card['missing'])}"
        return
    low_high = card.get("interval")
    bounds = f"  (95 %: {low_high[0]:.4g} to {low_high[1]:.4g})" if low_high else ""
    yield card["label"], f"{_value(card)}{bounds}"
    for deviation in card["deviations"]:
        yield "not the standard number", deviation
    yield from _flat(card["results"])
    for name in ("count", "checkpoint", "images", "weights", "precision", "device", "seconds"):
        if card.get(name) is not None:
            yield name, str(card[name])
    yield "protocol", f"{card['protocol']['name']} {card['protocol']['hash']}"
    yield from _flat(card["facts"])
    yield "libraries", ", ".join(f"{name} {version}" for name, version in card["libraries"].items())


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if name == "_target_":
            yield prefix.rstrip("."), str(value).rpartition(".")[2]
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", " ".join(_number(part) for part in value)
        elif value is not None and name != "_partial_":
            yield f"{prefix}{name}", _number(value)


def _value(card: Card) -> str:
    return "exported, not scored" if card["value"] is None else f"{card['value']:.6g}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _section(card: Card, result: Result | None) -> str:
    title = f"<h2>{html.escape(str(card['metric']))}</h2>"
    if card["status"] == "missing":
        lines = "".join(f"<li>{html.escape(line)}" for line in card["missing"])
        return f"{title}<p class=warn>Not computed; missing:<ul>{lines}</ul>"
    low_high = card.get("interval")
    bounds = f" <small>95 %: {low_high[0]:.4g} to {low_high[1]:.4g}</small>" if low_high else ""
    value = f"<p><span class=value>{_value(card)}</span> <code>{html.escape(card['label'])}</code>{bounds}"
    warnings = "".join(f"<p class=warn>Not the standard number: {html.escape(line)}" for line in card["deviations"])
    cells = "".join(f"<tr><th>{html.escape(name)}<td>{html.escape(text)}" for name, text in rows(card))
    pictures = _grid(result.pictures) if result else ""
    table = f"<details><summary>the whole card</summary><table>{cells}</table></details>"
    return title + value + warnings + _bars(card["results"]) + pictures + table


def _bars(results: Mapping[str, Any]) -> str:
    """Named parts of a result (tasks, categories) as bars."""
    text = ""
    for group in ("tasks", "categories", "parts"):
        parts = {name: value for name, value in (results.get(group) or {}).items() if isinstance(value, int | float)}
        most = max(parts.values(), default=0) or 1
        lines = (
            f"<tr><th>{html.escape(name)}<td>{value:.4g}"
            f"<td><span class=bar style='width:{12 * value / most:.2f}rem'></span>"
            for name, value in parts.items()
        )
        text += f"<table>{''.join(lines)}</table>" if parts else ""
    return text


def _grid(pictures: Sequence[tuple[Picture, str]]) -> str:
    figures = (
        f"<figure><img src='data:image/png;base64,{_encode(picture)}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for picture, caption in pictures
    )
    return f"<div class=grid>{''.join(figures)}</div>" if pictures else ""


def _encode(picture: Picture) -> str:
    image = picture.open()
    image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
