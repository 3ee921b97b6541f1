from __future__ import annotations

from pathlib import Path

import pytest

from star.page.presets import OWN, collect
from star.page.studio import Studio
from star.sampling.samplers import TopKTopP

CONF = Path(__file__).parents[2] / "conf"


def test_every_preset_of_the_configuration_is_offered(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(CONF))
    without = collect(studio.presets.configs[OWN], refiner=False)
    assert without.names[0] == OWN
    assert {"topk600", "greedy", "smooth"} <= set(without.names)
    assert not {"from_checkpoint", "causal_driven"} & set(without.names)
    assert "causal_driven" in collect(studio.presets.configs[OWN], refiner=True).names
    for name in without.names:
        without.decoder(studio.pipeline.decoder, name, without.knobs(name))


def test_sliders_move_what_a_preset_has(studio: Studio) -> None:
    presets, own = studio.presets, studio.pipeline.decoder
    assert presets.knobs(OWN) == {"guidance": 2.0, "top_k": 16, "top_p": 0.9, "temperature": 1.0}
    assert presets.knobs("greedy") == {"guidance": 2.0, "top_k": None, "top_p": None, "temperature": None}
    decoder = presets.decoder(own, OWN, {"guidance": 3, "top_k": 5.0, "temperature": None})
    sampler = decoder.sampler.sampler  # type: ignore[attr-defined]
    assert isinstance(sampler, TopKTopP)
    assert (decoder.guidance.scale, sampler.top_k, sampler.temperature) == (3.0, 5, 1.0)  # type: ignore[union-attr]
    presets.decoder(own, "greedy", {"top_k": 5.0})
    assert own.guidance.scale == 2.0  # type: ignore[union-attr]


def test_what_can_not_be_is_refused(studio: Studio) -> None:
    with pytest.raises(ValueError, match=r"no preset 'x': choose one of .*greedy"):
        studio.presets.decoder(studio.pipeline.decoder, "x", {})
    with pytest.raises(ValueError, match="guidance scale can't be negative"):
        studio.presets.decoder(studio.pipeline.decoder, OWN, {"guidance": -1.0})
