"""One evaluation from a resolved configuration: what evaluate.py does behind its one decorator."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from star.evaluation.cards import Result, make_card, missing_card, write_json
from star.evaluation.context import Context
from star.evaluation.items import Item
from star.evaluation.ranks import Ranks
from star.evaluation.report import headline, write_report
from star.metrics.assets import MissingAssetError
from star.utils.devices import choose_device
from star.utils.instantiate import instantiate

log = logging.getLogger(__name__)

Card = dict[str, Any]


def evaluate(config: Mapping[str, Any]) -> float | None:
    """Compute every metric of `metric.items`; returns the value of the first, None when it has none.

    Writes `card.json`, a card per metric in `cards/`, and `report.html` into `out`.

    Raises:
        MissingAssetError: when nothing can be computed, or with `check` or `on_missing=error` anything can't; the
            message lists all that is missing.
        ValueError: for no metric, or whatever is wrong with pictures or settings.

    """
    configs: dict[str, Any] = config["metric"]["items"]
    if not configs:
        raise ValueError("choose what to measure: metric=shapes, metric=[fid_mjhq,clip_score], ...; see --help")
    if config["on_missing"] not in ("skip", "error"):
        raise ValueError(f"on_missing is skip or error, got {config['on_missing']!r}")
    ranks = Ranks.start(choose_device(config["device"]))
    config = ranks.agree(config)  # `out` may be named after the moment
    context = Context(config, ranks)
    try:
        items: dict[str, Item] = {name: build(item) for name, item in configs.items()}
        context.follow(items.values())
        missing = {name: list(dict.fromkeys(item.missing(context))) for name, item in items.items()}
        report_missing(missing, config)
        if config["check"]:
            log.info("nothing is missing for %s", ", ".join(items))
            return None
        cards, results = run_all(context, items, missing)
        if context.ranks.rank == 0:
            write(Path(config["out"]), cards, results)
        value = next(iter(cards.values()))["value"]
        return None if value is None else float(value)
    finally:
        context.ranks.stop()


def build(config: Mapping[str, Any]) -> Item:
    """An item; its `sampling` stays in words, since a decoder is built only when the model is there."""
    item: Item = instantiate({name: value for name, value in config.items() if name != "sampling"})
    if config.get("sampling") is not None:
        item.sampling = config["sampling"]
    return item


def report_missing(missing: Mapping[str, list[str]], config: Mapping[str, Any]) -> None:
    """Say what is missing; raise unless the other metrics are to be computed without those that lack something."""
    lacking = {name: messages for name, messages in missing.items() if messages}
    if not lacking:
        return
    text = "\n".join(
        f"metric={name} can't run:\n" + "\n".join(f"  - {line}" for line in lines) for name, lines in lacking.items()
    )
    if config["check"] or config["on_missing"] == "error" or len(lacking) == len(missing):
        raise MissingAssetError(text)
    log.error("%s\nleft out (on_missing=error would stop here)", text)


def run_all(
    context: Context, items: Mapping[str, Item], missing: Mapping[str, list[str]]
) -> tuple[dict[str, Card], dict[str, Result]]:
    """Every metric's card and result; a card is written as soon as it is known."""
    cards: dict[str, Card] = {}
    results: dict[str, Result] = {}
    out = Path(context.config["out"])
    # a cold start is one only before other metrics use the model
    for name, item in sorted(items.items(), key=lambda pair: not getattr(pair[1], "needs_cold_model", False)):
        settings = context.config["metric"]["items"][name]
        if missing[name]:
            cards[name] = missing_card(name, settings, missing[name])
        else:
            start = time.perf_counter()
            results[name] = item.run(context)
            seconds = time.perf_counter() - start
            shared = shared_facts(context, results[name])
            cards[name] = make_card(name, settings, results[name], shared=shared, seconds=seconds)
        if context.ranks.rank == 0:
            write_json(out / "cards" / f"{name}.json", cards[name])
    return {name: cards[name] for name in items}, results


def shared_facts(context: Context, result: Result) -> dict[str, Any]:
    """What all cards of a command say about the model; pictures of `images=` have no weights that we know."""
    config = context.config
    given = config["images"] is not None and "pictures" in result.facts
    model: dict[str, Any] = {
        "checkpoint": context.model_name,
        "images": config["images"],
        "weights": None if given else context.identity,
    }
    return {**model, "precision": config["precision"], "device": context.device, "world_size": context.ranks.world}


def write(out: Path, cards: Mapping[str, Card], results: Mapping[str, Result]) -> None:
    """`card.json`: the metric's card, or of several `values` and `cards`; and the report."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    if len(cards) == 1:
        content = {**next(iter(cards.values())), "date": date}
    else:
        values = {name: card["value"] for name, card in cards.items()}
        content = {"values": values, "cards": dict(cards), "date": date}
    write_json(out / "card.json", content)
    write_report(out, cards, results)
    for name, card in cards.items():
        log.info("%s: %s", name, headline(card))
    log.info("card and report: %s", out)
