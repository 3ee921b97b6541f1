from __future__ import annotations

from typing import Any

import pytest

from star.checkpoints.presets import built_preset, merge_preset

BEST_OF = "star.sampling.best_of.BestOf"


def test_preset_keeps_what_is_null() -> None:
    own = {"guidance": {"scale": 4.0, "ramp": "linear"}, "sampler": {"top_k": 600}}
    changed = merge_preset(own, {"guidance": {"scale": 2.0, "ramp": None}, "sampler": {"top_k": None}})
    assert changed == {"guidance": {"scale": 2.0, "ramp": "linear"}, "sampler": {"top_k": 600}}


@pytest.mark.parametrize("held", [{}, {"best_of": None}, {"best_of": {"_target_": BEST_OF, "count": 2}}], ids=str)
def test_any_preset_can_be_asked_for_the_best_of_several(held: dict[str, Any]) -> None:
    """Releases and older checkpoints, too, whose presets say nothing of it."""
    decoder, greedy = "star.sampling.decoder.ScaleWiseDecoder", "star.sampling.samplers.Greedy"
    checkpoint = {"task": "generator", "sampling": {"_target_": decoder, "sampler": {"_target_": greedy}, **held}}
    asked, words = built_preset("run", checkpoint, {"best_of": {"count": 4}}, ())
    assert (asked["best_of"].count, words["best_of"]) == (4, {"_target_": BEST_OF, "count": 4})
    kept = built_preset("run", checkpoint, {"best_of": {"count": None}}, ())[0].get("best_of")
    assert (1 if kept is None else kept.count) == (2 if held.get("best_of") else 1)


def test_a_preset_has_no_value_of_a_part_that_it_lacks() -> None:
    decoder, greedy = "star.sampling.decoder.ScaleWiseDecoder", "star.sampling.samplers.Greedy"
    checkpoint = {"task": "generator", "sampling": {"_target_": decoder, "sampler": {"_target_": greedy}}}
    assert built_preset("run", checkpoint, {"guidance": {"scale": None}}, ())[0].get("guidance") is None
    with pytest.raises(ValueError, match="the preset of run has no guidance to change"):
        built_preset("run", checkpoint, {"guidance": {"scale": 2.0}}, ())


def test_a_preset_is_noted_without_the_single_candidate_that_older_ones_had() -> None:
    """Folders of pictures drawn before there were several go on."""
    decoder, greedy = "star.sampling.decoder.ScaleWiseDecoder", "star.sampling.samplers.Greedy"
    own = {"_target_": decoder, "sampler": {"_target_": greedy}}
    chosen = {**own, "best_of": {"_target_": BEST_OF, "count": 1}}
    assert built_preset("run", {}, chosen, ())[1] == own
    assert built_preset("run", {"sampling": own}, {"best_of": {"count": None}}, ())[1] == own
    protocol = merge_preset(own, {"best_of": {"count": 4}})  # a metric's preset, of which a command line wants four
    assert built_preset("run", {}, protocol, ())[0]["best_of"].count == 4


@pytest.mark.parametrize("temperature", [None, 0.3])
def test_a_preset_is_noted_without_a_last_temperature_that_is_none(temperature: float | None) -> None:
    decoder, sampler = "star.sampling.decoder.ScaleWiseDecoder", "star.sampling.samplers.TopKTopP"
    own = {"_target_": decoder, "sampler": {"_target_": sampler, "top_k": 8}}
    chosen = merge_preset(own, {"sampler": {"last_temperature": temperature}})
    chosen["sampler"].setdefault("last_temperature", None)
    parts, words = built_preset("run", {}, chosen, ())
    assert parts["sampler"].last_temperature == temperature
    assert words == (own if temperature is None else chosen)


def test_a_number_in_place_of_best_of_is_told_where_it_belongs() -> None:
    with pytest.raises(ValueError, match=r"said by sampling\.best_of\.count=4"):
        built_preset("run", {"sampling": {"_target_": "x"}}, {"best_of": 4}, ())
