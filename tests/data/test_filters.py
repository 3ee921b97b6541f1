from __future__ import annotations

import pytest

from star.data.filters import parse_filters
from star.data.skips import SkipSample

RULES = {
    "aesthetic": {"min": 5.0},
    "similarity": {"min": 0.2, "max": 0.9, "missing": "keep"},
    "short_side": {"min": 256},
    "aspect_ratio": {"max": 2.0},
}


@pytest.mark.parametrize(
    ("metadata", "cause"),
    [
        ({"aesthetic": 5.0, "similarity": 0.9}, None),
        ({"aesthetic": "6.5"}, None),
        ({"aesthetic": 4.9}, "filter: aesthetic$"),
        ({"aesthetic": 6, "similarity": 0.95}, "filter: similarity$"),
        ({}, "filter: aesthetic missing"),
        ({"aesthetic": None}, "filter: aesthetic missing"),
        ({"aesthetic": float("nan")}, "filter: aesthetic missing"),
        ({"aesthetic": "high"}, "filter: aesthetic missing"),
        ({"aesthetic": True}, "filter: aesthetic missing"),
        ({"aesthetic": 10**400}, "filter: aesthetic missing"),
    ],
)
def test_json_fields_must_lie_in_their_bounds(metadata: dict, cause: str | None) -> None:
    filters = parse_filters(RULES)
    if cause is None:
        filters.check_metadata(metadata)
    else:
        with pytest.raises(SkipSample, match=cause):
            filters.check_metadata(metadata)


@pytest.mark.parametrize(
    ("width", "height", "cause"), [(256, 512, None), (255, 300, "short_side"), (600, 299, "aspect")]
)
def test_sizes_are_measured_whatever_way_a_picture_lies(width: int, height: int, cause: str | None) -> None:
    filters = parse_filters(RULES)
    for size in ((width, height), (height, width)):
        if cause is None:
            filters.check_size(*size)
        else:
            with pytest.raises(SkipSample, match=cause):
                filters.check_size(*size)


def test_no_filter_accepts_everything() -> None:
    for filters in (parse_filters(None), parse_filters({})):
        filters.check_metadata({})
        filters.check_size(1, 10_000)


@pytest.mark.parametrize(
    "rules",
    [
        {"aesthetic": {}},
        {"aesthetic": {"min": 2, "max": 1}},
        {"aesthetic": {"mim": 2}},
        {"aesthetic": {"min": "high"}},
        {"aesthetic": {"min": float("nan")}},
        {"aesthetic": {"min": 1, "missing": "drop"}},
        {"aesthetic": 5.0},
        ["aesthetic"],
    ],
)
def test_what_is_no_filter_is_named(rules: object) -> None:
    with pytest.raises(ValueError, match=r"filters.*aesthetic"):
        parse_filters(rules)  # type: ignore[arg-type]
