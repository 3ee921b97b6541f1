from __future__ import annotations

import pytest

from star.checkpoints.report import Leftover, LoadReport, compare


def test_equal_shapes_pass() -> None:
    compare({"a": (1, 2), "b": ()}, {"b": (), "a": [1, 2]}, source="file")


def test_one_table_shows_every_difference() -> None:
    with pytest.raises(ValueError, match="file doesn't fit the model: 1 missing, 1 unexpected, 1 reshaped") as caught:
        compare({"a": (1, 2), "b": (3,), "same": (4,)}, {"b": (), "c": (5, 6), "same": (4,)}, source="file")
    rows = [line.split() for line in str(caught.value).splitlines()[1:]]
    assert rows == [
        ["tensor", "model", "checkpoint"],
        ["a", "1x2", "missing"],
        ["c", "unexpected", "5x6"],
        ["b", "3", "scalar"],
    ]


def test_a_report_groups_what_was_left_over() -> None:
    leftovers = (Leftover("a", 10, "zeros"), Leftover("b", 5, "zeros"), Leftover("c", 1, "unused"))
    report = LoadReport("file", "Model", 3, 1234, leftovers, ("cut",))
    assert str(report).splitlines() == [
        "Model from file: 1,234 parameters in 3 tensors",
        "  not used: a and 1 more, 15 numbers (zeros)",
        "  not used: c, 1 numbers (unused)",
        "  note: cut",
    ]
