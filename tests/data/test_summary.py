from __future__ import annotations

import random

import torch

from star.data.summary import Histogram, Summary


def test_a_histogram_loses_nothing() -> None:
    histogram = Histogram((2, 4, 8))
    for value in (1, 2, 3.9, 4, 8, 100):
        histogram.add(value)
    assert histogram.bins() == {"under 2": 1, "2 to 4": 2, "4 to 8": 1, "8 and more": 2}
    assert histogram.mean == (1 + 2 + 3.9 + 4 + 8 + 100) / 6


def test_the_contact_sheet_is_an_even_draw() -> None:
    """Each of 40 samples is among 10 shown ones in about a quarter of the runs."""
    times = [0] * 40
    thumbnail = torch.zeros(3, 2, 2, dtype=torch.uint8)
    for run in range(400):
        summary = Summary(examples=10, rng=random.Random(run))
        for i in range(40):
            summary.add(thumbnail, [str(i)], size=(8, 8), num_bytes=1)
        shown = [int(caption) for _, caption in summary.shown]
        assert len(set(shown)) == 10
        for i in shown:
            times[i] += 1
    assert all(60 <= count <= 140 for count in times)


def test_the_page_says_what_the_facts_say() -> None:
    summary = Summary()
    summary.add(torch.zeros(3, 4, 4, dtype=torch.uint8), ["a <b> & c", "x"], size=(640, 480), num_bytes=2**20)
    summary.skip("decode: OSError")
    summary.damaged["00007"] = "ReadError: cut"
    facts = summary.facts()
    assert (facts["samples"], facts["skipped"]) == (1, {"decode: OSError": 1})
    assert facts["short_side"]["384 to 512"] == 1
    assert facts["short_side"]["mean"] == 480
    page = summary.page("t < u")
    for part in ("a &lt;b&gt; &amp; c", "t &lt; u", "decode: OSError", "00007", "1.0 MiB", "data:image/jpeg;base64,"):
        assert part in page
    assert "http" not in page
