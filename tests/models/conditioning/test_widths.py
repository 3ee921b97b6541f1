from __future__ import annotations

import pytest

from star.models.conditioning.widths import check_widths


def test_stating_nothing_or_the_truth_is_fine() -> None:
    check_widths(8, pooled_width=None, context_width=8, owner="it")


def test_a_wrong_size_is_named_with_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"pooled_width=9, but ViT-H-14 has 8; set text_encoder.pooled_width=8"):
        check_widths(8, pooled_width=9, context_width=8, owner="ViT-H-14")
