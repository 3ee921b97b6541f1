from __future__ import annotations

import json
import math
from pathlib import Path

from star.evaluation.cards import Result, frozen_protocols, make_card, missing_card, protocol_hash, write_json
from star.evaluation.report import as_text, write_report
from star.utils.cli import compose, plain

CONF = Path(__file__).parents[2] / "conf" / "metric"


def test_protocols_are_frozen() -> None:
    """A protocol changes only with a commit that says why: then its new hash goes into protocols.json."""
    now = {}
    for path in sorted(CONF.glob("*.yaml")):
        for name, item in plain(compose("evaluate", [f"metric={path.stem}"]))["metric"]["items"].items():
            assert path.stem in (name, f"{name}_full")
            now[path.stem] = protocol_hash(item)
    assert now == frozen_protocols()


def test_hash_ignores_where_files_lie_and_sees_all_else() -> None:
    base = {"seed": 0, "prompts": {"root": "/a"}, "metric": {"weights": None, "scale": 1.0}}
    moved = {"seed": 0, "prompts": {"root": "/b"}, "metric": {"weights": "/w", "scale": 1.0}}
    assert protocol_hash(base) == protocol_hash(moved)
    assert protocol_hash(base) != protocol_hash({**base, "seed": 1})


def test_changed_settings_are_not_the_standard_number() -> None:
    item = plain(compose("evaluate", ["metric=shapes"]))["metric"]["items"]["shapes"]
    result = Result(0.5, "shapes/4x264", 10, interval=(0.4, 0.6))
    assert make_card("shapes", item, result, shared={}, seconds=1.0)["standard"]
    changed = make_card("shapes", {**item, "seed": 9}, result, shared={}, seconds=1.0)
    assert not changed["standard"]
    assert changed["deviations"][0].startswith("settings differ from the protocol shapes")


def test_the_full_reconstruction_is_a_protocol_of_its_own() -> None:
    item = plain(compose("evaluate", ["metric=reconstruction_full"]))["metric"]["items"]["reconstruction"]
    card = make_card("reconstruction", item, Result(30.0, "psnr@256", 10), shared={}, seconds=1.0)
    assert card["standard"]
    assert card["protocol"]["name"] == "reconstruction_full"


def test_card_says_what_it_takes_to_get_the_number_again(tmp_path: Path) -> None:
    result = Result(0.5, "x", 10, results={"tasks": {"a": 1.0}, "bad": math.nan}, facts={"seed": 3})
    card = make_card("x", {"seed": 3}, result, shared={"weights": "abc", "device": "cpu"}, seconds=1.0)
    write_json(tmp_path / "card.json", card)
    held = json.loads((tmp_path / "card.json").read_text())
    assert held["value"] == 0.5
    assert held["libraries"]["torch"]
    assert held["hardware"]["device"] == "cpu"
    assert held["protocol"]["hash"] == protocol_hash({"seed": 3})
    assert "tasks.a" in as_text(card)


def test_report_shows_missing_metrics_and_escapes_names(tmp_path: Path) -> None:
    result = Result(0.5, "x", 10, results={"tasks": {"<b>": 1.0}})
    cards = {
        "x": make_card("x", {}, result, shared={}, seconds=1.0),
        "y": missing_card("y", {}, ["no <weights>"]),
        "z": make_card("z", {}, Result(None, "export", 3), shared={}, seconds=1.0),
    }
    write_report(tmp_path, cards, {"x": result})
    page = (tmp_path / "report.html").read_text()
    assert "no &lt;weights&gt;" in page
    assert "&lt;b&gt;" in page
    assert "exported, not scored" in page
    assert "not computed: no <weights>" in (tmp_path / "report.txt").read_text()
