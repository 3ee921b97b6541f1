from __future__ import annotations

import pytest

from star.sampling.samplers import Gumbel, TopKTopP


def test_nonsense_is_refused_with_the_value() -> None:
    with pytest.raises(ValueError, match="-1"):
        TopKTopP(-1)
    with pytest.raises(ValueError, match=r"1\.5"):
        TopKTopP(1, 1.5)
    with pytest.raises(ValueError, match="0"):
        Gumbel(0.0)
