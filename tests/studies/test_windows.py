from __future__ import annotations

import json
from pathlib import Path

import pytest

from star.studies.windows import main


def test_windows_take_less_memory_and_the_command_says_how_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAR_CONF", str(Path(__file__).parents[2] / "conf"))
    out = tmp_path / "windows.json"
    size = ["model.width=32", "model.num_heads=2", "model.depth=1", "tokenizer.quantizer.codebook_size=64"]
    variants = "variants=all,local_window,random_tail"
    main(["stage=256", "repeats=1", variants, "precision=bfloat16", f"out={out}", *size])
    rows = {row["train_tokens"]: row for row in json.loads(out.read_text())["rows"]}
    assert [row["tokens"] for row in rows.values()] == [680, 368, 633]
    assert rows["local_window"]["times less memory"] > 1.5
    assert rows["random_tail"]["times less memory"] > 1
    assert rows["all"]["times faster"] == 1


@pytest.mark.slow
def test_the_1024_schedule_trains_without_an_l_by_l_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch 1, all 9451 tokens, a small width; the largest tensor is the logits."""
    monkeypatch.setenv("STAR_CONF", str(Path(__file__).parents[2] / "conf"))
    out = tmp_path / "windows.json"
    main(["repeats=1", f"out={out}", "model.width=64", "model.num_heads=1", "model.depth=1"])
    rows = {row["train_tokens"]: row for row in json.loads(out.read_text())["rows"]}
    assert [row["tokens"] for row in rows.values()] == [9451, 4688]
    assert rows["all"]["largest tensor"] in ("1x9451x4096", "9451x4096")
    assert rows["local_window"]["times less memory"] > 1.8
