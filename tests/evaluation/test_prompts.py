from __future__ import annotations

from pathlib import Path

import pytest

from star.evaluation.prompts import PromptFile, PromptSet

RECORDS = tuple({"prompt": f"prompt {i}", "index": i, "stem": f"art/{i}"} for i in range(3))


def test_seeds_come_from_protocol_and_prompt_and_rise_by_one_within_a_prompt() -> None:
    seeds = [request.seed for request in PromptSet("x", RECORDS, num_images=2, seed=7).requests()]
    assert [seeds[i + 1] - seeds[i] for i in (0, 2, 4)] == [1, 1, 1]
    assert len(set(seeds)) == 6
    alone = PromptSet("x", RECORDS[1:2], num_images=2, seed=7).requests()
    assert [request.seed for request in alone] == seeds[2:4]
    assert [request.seed for request in PromptSet("x", RECORDS, seed=8).requests()] != seeds[::2]
    assert [request.seed for request in PromptSet("x", RECORDS, seed=8, same_seed=True).requests()] == [8, 8, 8]


@pytest.mark.parametrize(
    ("layout", "num_images", "last"),
    [
        ("flat", 2, "00005.png"),
        ("geneval", 2, "00002/samples/00001.png"),
        ("named", 1, "art/2.png"),
        ("named", 2, "art/2_1.png"),
    ],
)
def test_layouts(layout: str, num_images: int, last: str) -> None:
    requests = PromptSet("x", RECORDS, num_images=num_images, layout=layout).requests()
    assert requests[-1].file == requests[-1].metadata["file"] == last
    assert requests[-1].metadata["place"] == len(requests) - 1
    assert requests[-1].metadata["image"] == num_images - 1


def test_fingerprint_tells_prompts_counts_and_seeds_apart() -> None:
    base = PromptSet("x", RECORDS)
    others = [PromptSet("x", RECORDS[:2]), PromptSet("x", RECORDS, num_images=2), PromptSet("x", RECORDS, seed=1)]
    assert len({each.fingerprint() for each in (base, *others)}) == 4
    assert base.fingerprint() == PromptSet("x", RECORDS).fingerprint()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptSet("x", ())
    with pytest.raises(ValueError, match="layout is one of"):
        PromptSet("x", RECORDS, layout="tree")


def test_file_of_captions(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    assert "no prompt file" in next(PromptFile(str(path)).iterate_missing())
    path.write_text("a cat\n\na dog\n")
    source = PromptFile(str(path), num_images=2)
    assert list(source.iterate_missing()) == []
    assert [request.prompt for request in source.load().requests()] == ["a cat", "a cat", "a dog", "a dog"]
