from __future__ import annotations

from typing import Any

import pytest

from star.page.limits import Limits


@pytest.mark.parametrize("wrong", [{"prompt": 0}, {"queue": -1}, {"images": 1.5}, {"history": True}])
def test_bounds_are_whole_numbers_above_zero(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"limits.{next(iter(wrong))} is a whole number"):
        Limits(**wrong)
