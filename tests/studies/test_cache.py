from __future__ import annotations

import json
from pathlib import Path

import pytest

from star.studies.cache import main, study

TOY = [
    "model.depth=1",
    "model.width=32",
    "model.num_heads=2",
    "tokenizer.encoder.width=16",
    "tokenizer.decoder.channels=16",
    "batch_size=4",
]


@pytest.mark.parametrize("text", [[], ["text_encoder=minilm"]])
def test_pictures_and_both_kinds_of_cache_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: list[str]
) -> None:
    monkeypatch.setenv("STAR_CONF", str(Path(__file__).parents[2] / "conf"))
    out = tmp_path / "cache.json"
    main(["recipe=demo", "images=8", "repeats=1", f"out={out}", *TOY, *text])
    rows = {row["trained on"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["pictures", "codes", "latents"]
    assert rows["pictures"]["times faster"] == 1
    assert all(row["seconds"] > 0 and row["KiB a picture"] > 0 for row in rows.values())
    assert (rows["codes"]["KiB a picture"] > 10) == bool(text)  # features of texts outweigh codes


def test_unknown_recipes_and_kinds_are_named() -> None:
    with pytest.raises(ValueError, match="recipe is one of published, demo, got 'soup'"):
        study(["recipe=soup"])
    with pytest.raises(ValueError, match="kinds are some of codes, latents, got pixels"):
        study(["kinds=codes,pixels"])
