from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star.evaluation.context import Context
from star.evaluation.run import build
from star.evaluation.shards import RealPictures
from star.evaluation.tokenizer import ReconstructionItem

Settings = Callable[..., dict[str, Any]]


def test_both_tasks_checkpoints_give_the_same_reconstructions(
    tiny_checkpoint: Path, tiny_tokenizer: Path, settings: Settings
) -> None:
    results = []
    for path, batch in ((tiny_checkpoint, 24), (tiny_tokenizer, 7)):
        context = Context(settings(f"ckpt={path}", f"batch={batch}"))
        item = ReconstructionItem(real=RealPictures())
        assert list(item.missing(context)) == []
        results.append(item.run(context))
    assert results[0].value == pytest.approx(results[1].value, rel=1e-5)
    assert results[0].count == results[1].count == 24
    codebook = results[0].results["codebook"]
    assert len(codebook["usage_per_scale"]) == 3
    assert codebook == results[1].results["codebook"]
    assert results[0].label == "psnr@32"


def test_other_features_than_the_protocols_are_said_of_the_rfid(tiny_tokenizer: Path, settings: Settings) -> None:
    words = (
        "metric=reconstruction_full",
        "metric.features=effnet_lite0_b320@128",
        "metric.items.reconstruction.lpips=null",
    )
    context = Context(settings(f"ckpt={tiny_tokenizer}", *words))
    result = build(context.config["metric"]["items"]["reconstruction"]).run(context)
    assert result.results["rfid"] > 0
    assert result.deviations == ["rFID: effnet_lite0_b320@128 features instead of torch_fidelity"]


def test_suite_instead_of_shards(tiny_tokenizer: Path, settings: Settings) -> None:
    context = Context(settings(f"ckpt={tiny_tokenizer}"))
    result = ReconstructionItem(real=RealPictures(), suite="shapes", num_images=1).run(context)
    assert result.count == 264
    assert result.facts["source"] == "suite shapes"


def test_what_is_missing_is_told(tiny_tokenizer: Path, tmp_path: Path, settings: Settings) -> None:
    item = ReconstructionItem(real=RealPictures(str(tmp_path / "absent-{0..1}.tar")))
    assert "none of the 2 shards exists" in next(item.missing(Context(settings(f"ckpt={tiny_tokenizer}"))))
    assert "no model" in next(item.missing(Context(settings())))
    assert "no checkpoint at" in next(item.missing(Context(settings("ckpt=absent.ckpt"))))


def test_a_checkpoint_may_not_name_commands(tiny_tokenizer: Path, settings: Settings) -> None:
    context = Context(settings(f"ckpt={tiny_tokenizer}"))
    context.checkpoint_config["data"] = {"validation_sources": {"x": {"urls": "pipe:cat x.tar"}}}
    with pytest.raises(ValueError, match="not local paths"):
        RealPictures().sources(context)
    context.checkpoint_config["data"] = {}
    assert "set shards=ADDRESS" in next(RealPictures().missing(context))


def test_so_many_pictures_and_no_more(tiny_tokenizer: Path, settings: Settings) -> None:
    context = Context(settings(f"ckpt={tiny_tokenizer}", "batch=5"))
    assert sum(len(batch) for batch in RealPictures(max_images=12).batches(context, (32, 32))) == 12
