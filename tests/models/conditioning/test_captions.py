from __future__ import annotations

import logging

import pytest

from star.models.conditioning import captions
from star.models.conditioning.captions import check_captions, clean_caption, warn_truncated


def test_cleaning_makes_one_line_of_valid_unicode() -> None:
    line, cut = clean_caption("  a\n\tred \ud800 circle ", 77)
    assert line == "a red ? circle"
    assert not cut


@pytest.mark.parametrize("length", [0, 64, 65, 100_000])
def test_only_what_no_token_could_reach_is_cut(length: int) -> None:
    line, cut = clean_caption("x" * length, 2)
    assert len(line) == min(length, 64)
    assert cut == (length > 64)


def test_cleaning_twice_changes_nothing() -> None:
    line, _ = clean_caption("\u3000a  caf\u00e9 \U0001f600 ", 77)
    assert clean_caption(line, 77) == (line, False)


def test_tuples_are_captions_too() -> None:
    assert check_captions(("a", "")) == ["a", ""]


def test_warns_once_a_process(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(captions, "_warned_about", set())
    with caplog.at_level(logging.WARNING):
        warn_truncated("first", 77)
        warn_truncated("second", 32)
    assert [record.args for record in caplog.records] == [(77, "first")]
