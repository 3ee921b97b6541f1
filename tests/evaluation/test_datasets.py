from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from star.evaluation.benchmarks import HPS_STYLES, HPSPrompts, ImageRewardPrompts, plain_name, read_list
from star.evaluation.datasets import COCO, MJHQ, MJHQ_CATEGORIES


@pytest.fixture
def mjhq(tmp_path: Path) -> Path:
    entries = {f"{name}{i}": {"category": name, "prompt": f"{name} {i}"} for i in range(4) for name in MJHQ_CATEGORIES}
    (tmp_path / "meta_data.json").write_text(json.dumps(entries))
    for key, entry in entries.items():
        (tmp_path / "data_meta" / entry["category"]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data_meta" / entry["category"] / f"{key}.jpg")
    return tmp_path


def test_mjhq_has_prompts_in_order_and_their_real_pictures(mjhq: Path) -> None:
    source = MJHQ(mjhq)
    assert not [*source.iterate_missing(), *source.reference_missing()]
    requests = source.load().requests()
    assert [request.file for request in requests[:2]] == ["animals/animals0.png", "art/art0.png"]
    assert [picture.record["prompt"] for picture in source.reference()] == [request.prompt for request in requests]
    assert next(source.reference()).open().size == (8, 8)


def test_mjhq_subset_has_as_many_of_each_category_and_is_fixed(mjhq: Path) -> None:
    records = MJHQ(mjhq, per_category=2).load().records
    assert [record["category"] for record in records] == [name for name in MJHQ_CATEGORIES for _ in range(2)]
    assert records == MJHQ(mjhq, per_category=2).load().records


def test_mjhq_missing_and_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STAR_ASSETS", raising=False)
    messages = [*MJHQ().iterate_missing(), *MJHQ().reference_missing()]
    assert "meta_data.json" in messages[0]
    assert "huggingface.co/datasets/playgroundai/MJHQ-30K" in messages[0]
    assert "paths.mjhq=FOLDER" in messages[0]
    assert "animals" in messages[1]
    with pytest.raises(FileNotFoundError, match=r"meta_data\.json"):
        MJHQ().load()
    for key, category in (("../x", "art"), ("x", "cars")):
        (tmp_path / "meta_data.json").write_text(json.dumps({key: {"category": category, "prompt": ""}}))
        with pytest.raises(ValueError, match="unknown category"):
            MJHQ(tmp_path).load()
    with pytest.raises(ValueError, match="per_category=0"):
        MJHQ(tmp_path, per_category=0)


def test_pictures_that_were_not_unpacked_are_missed_before_anything_is_drawn(mjhq: Path) -> None:
    for name in ("art1", "art2"):
        (mjhq / "data_meta" / "art" / f"{name}.jpg").unlink()
    (message,) = MJHQ(mjhq).reference_missing()
    assert "pictures (2 of them, e.g. art/art1.jpg) not found" in message
    Image.new("RGB", (8, 8)).save(mjhq / "data_meta" / "art" / "art1.png")
    assert "(1 of them, e.g. art/art2.jpg)" in next(MJHQ(mjhq).reference_missing())


@pytest.mark.parametrize("text", ["{", "[]", '{"x": {"category": "art"}}', '{"x": {"prompt": "a"}}', '{"x": 3}'])
def test_a_broken_file_of_prompts_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "meta_data.json").write_text(text)
    for source in (MJHQ(tmp_path), MJHQ(tmp_path, per_category=1)):
        with pytest.raises(ValueError, match=r"meta_data\.json"):
            source.load()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2014.json").write_text(text)
    with pytest.raises(ValueError, match=r"captions_val2014\.json"):
        COCO(tmp_path).load()
    (tmp_path / "benchmark-prompts.json").write_text('[{"id": "1"}]')
    with pytest.raises(ValueError, match=r"benchmark-prompts\.json: every entry has an id and a prompt"):
        ImageRewardPrompts(tmp_path).load()


def test_coco_takes_one_caption_of_each_picture(tmp_path: Path) -> None:
    assert "captions_val2014.json" in next(COCO(tmp_path).iterate_missing())
    assert "val2014" in next(COCO(tmp_path).reference_missing())
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(5)],
        "annotations": [{"id": 9 - i, "image_id": i % 5, "caption": f" caption {i} "} for i in range(10)],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2014.json").write_text(json.dumps(content))
    records = COCO(tmp_path, num_prompts=3).load().records
    assert len({record["picture"] for record in records}) == 3
    (tmp_path / "val2014").mkdir()
    for i in range(4):
        (tmp_path / "val2014" / f"{i}.jpg").touch()
    assert "(1 of them, e.g. 4.jpg)" in next(COCO(tmp_path).reference_missing())
    assert all(record["prompt"] == f"caption {int(record['picture'][0]) + 5}" for record in records)


def test_benchmarks_name_pictures_as_their_scorers_want(tmp_path: Path) -> None:
    assert "benchmark-prompts.json" in next(ImageRewardPrompts(tmp_path).iterate_missing())
    (tmp_path / "benchmark-prompts.json").write_text(json.dumps([{"id": "000-0", "prompt": "a cat"}]))
    requests = ImageRewardPrompts(tmp_path).load().requests()
    assert [request.file for request in requests] == [f"000-0_{k}.png" for k in range(10)]
    assert "anime.json" in next(HPSPrompts(tmp_path).iterate_missing())
    for style in HPS_STYLES:
        (tmp_path / f"{style}.json").write_text(json.dumps([f"{style} a", f"{style} b"]))
    records = HPSPrompts(tmp_path).load().requests()
    assert records[3].file == "concept-art/00001.png"
    assert records[3].metadata["category"] == "concept-art"


def test_lists_and_names_are_checked(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no list of prompts"):
        read_list(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_list(tmp_path / "x.json")
    with pytest.raises(ValueError, match="can't name a file"):
        plain_name("../x")
