from __future__ import annotations

import pytest

from star.data.skips import SkipCounter, SkipSample, UnusableDataError


def test_skips_are_counted_by_cause_and_taken_once() -> None:
    skips = SkipCounter(source="mine", max_consecutive=10)
    for cause in ("decode: OSError", "caption: empty", "decode: OSError"):
        skips.add(cause, "mine/00000/7")
    assert skips.take() == {"decode: OSError": 2, "caption: empty": 1}
    assert not skips.take()


def test_a_good_sample_ends_the_run() -> None:
    skips = SkipCounter(source="mine", max_consecutive=2)
    for _ in range(5):
        skips.add("caption: empty", "x")
        skips.add("caption: empty", "x")
        skips.success()
    assert skips.take().total() == 10


def test_too_many_in_a_row_is_an_error_with_the_counts() -> None:
    skips = SkipCounter(source="mine", max_consecutive=2)
    skips.add("decode: OSError", "mine/00000/1")
    skips.add("decode: OSError", "mine/00000/2")
    with pytest.raises(UnusableDataError, match=r"'mine': 3 .*decode: OSError x 2, caption: empty x 1.*mine/00000/3"):
        skips.add("caption: empty", "mine/00000/3")


def test_the_cause_is_short() -> None:
    assert SkipSample("filter", "aspect_ratio").cause == "filter: aspect_ratio"
