from __future__ import annotations

import pytest

from star.checkpoints.presets import built_preset
from star.evaluation.items import _words
from star.utils.cli import compose, plain


@pytest.mark.parametrize("metric", ["fid_mjhq", "geneval", "dpg"])
@pytest.mark.parametrize("top_k", [600, 900])
def test_the_protocols_preset_is_the_same_when_it_is_named(metric: str, top_k: int) -> None:
    config = plain(compose("evaluate", [f"metric={metric}", f"sampling=topk{top_k}"]))
    _, drawn = built_preset("run", {}, config["sampling"], ())
    own = config["metric"]["items"][metric]["sampling"]
    assert (_words(drawn) == _words(own)) == (top_k == 600)
