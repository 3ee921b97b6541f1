from __future__ import annotations

import random
from collections import Counter

import pytest

from star.data.captions import Captions, clean_caption
from star.data.skips import SkipSample


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("a red circle", "a red circle"),
        ("  a\tred\r\n circle ", "a red circle"),
        ("salt &amp; pepper, caf&eacute;", "salt & pepper, café"),
        ("R&amp;amp;B", "R&B"),
        ("a <b>bold</b> cat<br/>sat", "a bold cat sat"),
        ("a &lt;b&gt;bold&lt;/b&gt; cat", "a bold cat"),
        ("kittens <!-- ad --> play", "kittens play"),
        ("I <3 you, a < b and c > d", "I <3 you, a < b and c > d"),
        ("see https://shop.example/x?y=1 now, or www.example.com", "see now, or"),
        ("nul\x00 bell\x07 c1\x85 end", "nul bell c1 end"),
        ("soft\u00adhyphen zero\u200bwidth \ufeffbom", "softhyphen zerowidth bom"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("e\u0301cole", "école"),
        ("👩\u200d🚀 man: 50% OFF! \u4e2d\u6587", "👩\u200d🚀 man: 50% OFF! \u4e2d\u6587"),
        ("<p></p> &nbsp;\u200b", ""),
        ("", ""),
    ],
)
def test_cleaning(written: str, cleaned: str) -> None:
    assert clean_caption(written) == cleaned


@pytest.mark.parametrize("text", ["a red circle", "R&amp;amp;amp;B", "a <i>b", "&lt;&lt;b>>", "x\u0301 https://a.b"])
def test_cleaned_text_can_be_encoded_and_has_no_odd_space(text: str) -> None:
    cleaned = clean_caption(text)
    assert cleaned.encode().decode() == cleaned == " ".join(cleaned.split())


def test_fields_are_drawn_by_weight_and_lists_share_theirs() -> None:
    captions = Captions({"txt": 1, "long": 2, "other": 3})
    rng = random.Random(0)
    metadata = {"long": ["b", "c"], "other": None}
    drawn = Counter(captions.choose("a", metadata, rng) for _ in range(6000))
    assert drawn.keys() == {"a", "b", "c"}
    assert all(abs(count / 6000 - 1 / 3) < 0.03 for count in drawn.values())


def test_an_empty_caption_gives_way_to_another() -> None:
    captions = Captions({"txt": 1000, "long": 1})
    assert captions.choose("<br>", {"long": "a cat"}, random.Random(0)) == "a cat"


def test_all_captions_are_what_may_be_drawn() -> None:
    captions = Captions({"txt": 1.0, "long": 2.0})
    metadata = {"long": ["  one ", "<b></b>", "two"]}
    usable = captions.all("three &amp; four", metadata)
    assert [caption for caption, _ in usable] == ["three & four", "one", "two"]
    assert [weight for _, weight in usable] == pytest.approx([1, 2 / 3, 2 / 3])
    drawn = {captions.choose("three &amp; four", metadata, random.Random(i)) for i in range(50)}
    assert drawn == {caption for caption, _ in usable}


@pytest.mark.parametrize(
    ("text", "metadata", "cause"),
    [
        (None, {}, "caption: missing"),
        (None, {"long": 3}, "caption: missing"),
        (None, {"long": []}, "caption: missing"),
        ("", {}, "caption: empty"),
        (" \n", {"long": ["&nbsp;", "<p>"]}, "caption: empty"),
    ],
)
def test_no_caption_is_a_skip(text: str | None, metadata: dict, cause: str) -> None:
    captions = Captions({"txt": 1, "long": 1})
    with pytest.raises(SkipSample, match=cause):
        captions.choose(text, metadata, random.Random(0))
    with pytest.raises(SkipSample, match=cause):
        captions.all(text, metadata)


@pytest.mark.parametrize("fields", [{}, "txt", {"txt": 0}, {"txt": -1}, {"txt": "x"}, {"txt": float("nan")}])
def test_weights_must_make_sense(fields: object) -> None:
    with pytest.raises(ValueError, match="caption"):
        Captions(fields)  # type: ignore[arg-type]
