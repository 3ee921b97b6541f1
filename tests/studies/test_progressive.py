from __future__ import annotations

from pathlib import Path

import pytest

from star.studies.progressive import DEFAULTS, compare, main, steps_of


def test_curves_are_compared_by_steps_to_the_same_loss() -> None:
    """A logger's step 99 is the hundredth."""
    scratch = [(49, 5.0), (99, 4.0)]
    assert compare(scratch, [(9, 6.0), (19, 4.0), (29, 3.0)]) == {
        "target loss": 4.0,
        "steps from scratch": 100,
        "steps from 64": 20,
        "share of steps": 0.2,
        "last loss from 64": 3.0,
    }
    assert compare(scratch, [(49, 4.5)])["steps from 64"] == "never"


def test_every_training_composes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(Path(__file__).parents[2] / "conf"))
    settings = DEFAULTS | {"tokenizer": Path("tokenizer.ckpt"), "out": tmp_path}
    steps = {step.name: step.recipe for step in steps_of(settings, ["init_rule=index"])}
    assert len(steps) == 4 + 6
    for position, kind in (("normalized", "Rotary2D"), ("absolute", "AbsolutePosition")):
        before, scratch, grown = (steps[f"{name}_{position}"] for name in ("before", "scratch", "grown"))
        assert before["resolution"] == 64
        assert scratch["resolution"] == grown["resolution"] == 128
        assert scratch["init_from"] is None
        assert grown["init_from"] == str(tmp_path / f"before_{position}")
        assert grown["init_rule"] == "index"
        assert grown["position"]["_target_"].endswith(kind)
        assert [run["trainer"]["max_steps"] for run in (before, scratch, grown)] == [1400, 800, 400]
    given = {step.name for step in steps_of(settings | {"before": Path("star.ckpt")}, [])}
    assert "before_normalized" not in given


def test_a_tokenizer_is_needed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main([f"out={tmp_path}"])
