"""Caches written and read without the command: tokens in the place of pictures change nothing but the speed."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from star.data.cache_header import CacheHeader, read_header
from star.data.cache_samples import CachedReader
from star.data.cache_writer import CacheReport, ShardCacher, describe_all, tasks_of
from star.data.cached import CachedDataModule
from star.data.captions import Captions
from star.data.datamodule import ShardDataModule
from star.data.filters import parse_filters
from star.data.samples import SampleReader
from star.data.shards import RawSample
from star.data.skips import SkipSample
from star.data.sources import ShardSource
from star.data.transforms import ImageTransform
from star.types import Batch, Condition

MakeShard = Callable[..., str]


def encode(images: Tensor) -> Tensor:
    """Three codes that tell pictures of one colour apart."""
    return images.mean((2, 3)).add(1).mul(127.5).round().long()


def latents(images: Tensor) -> Tensor:
    return images[:, :, :2, :2]


def describe(captions: Sequence[str]) -> Condition:
    """As many tokens as the caption has words, at least one."""
    lengths = torch.tensor([max(1, len(caption.split())) for caption in captions])
    context = torch.arange(5.0)[None, :, None] + lengths[:, None, None].expand(-1, 5, 2)
    return Condition(lengths[:, None].float().expand(-1, 3), context, torch.arange(5) < lengths[:, None])


@pytest.fixture
def shards(make_shard: MakeShard, make_sample: Callable[..., dict[str, bytes]]) -> dict[str, list[str]]:
    broken = {"png": b"", "txt": b"x"}
    several = make_sample(9, long=["a long caption", "another one"])
    train = [make_shard("00000", [*range(5), broken, several]), make_shard("00001", range(10, 18))]
    return {"train": train, "validation": [make_shard("held", range(20, 25))]}


CAPTIONS = Captions({"txt": 1.0, "long": 2.0})


@pytest.fixture
def write(shards: dict[str, list[str]], tmp_path: Path) -> Callable[..., list[CacheReport]]:
    """Writes a cache into `tmp_path/cache`."""

    def write(encode: Callable[[Tensor], Tensor] = encode, *, text: bool = True, **changes: Any) -> list[CacheReport]:
        reader = SampleReader(CAPTIONS, parse_filters({}), ImageTransform((4, 4)))
        cacher = ShardCacher(reader, encode, describe if text else None, **({"batch_size": 4} | changes))
        out = tmp_path / "cache"
        header = CacheHeader(
            kind="codes" if encode(torch.zeros(1, 3, 4, 4)).dtype == torch.long else "latents",
            copies=cacher.copies,
            tokenizer="T1",
            schedule="1 2",
            prepared={},
            sources={"train": {"mine": 1.0}, "validation": {"mine": 1.0}},
            text_encoder="E1" if text else None,
            empty=describe_all(describe, [""])[""] if text else None,
        )
        out.mkdir(exist_ok=True)
        header.write(out)
        assert read_header(out).differences(header) == []
        reports = []
        for split, urls in shards.items():
            tasks = tasks_of([ShardSource(tuple(urls), name="mine")], out / split)
            reports += [cacher.write(task) for task in tasks if not task.target.exists()]
        return reports

    return write


def identify(module: Any, part: str) -> str | None:
    return getattr(module, part)


@pytest.fixture
def cached(tmp_path: Path) -> Callable[..., CachedDataModule]:
    def cached(**changes: Any) -> CachedDataModule:
        settings = {"batch_size": 4, "num_workers": 0, "shuffle_buffer": 5, "identify": identify}
        return CachedDataModule(tmp_path / "cache", **(settings | changes))

    return cached


def images(shards: dict[str, list[str]], **changes: Any) -> ShardDataModule:
    sources = {split: {"mine": {"urls": urls, "captions": CAPTIONS}} for split, urls in shards.items()}
    settings = {"batch_size": 4, "num_workers": 0, "shuffle_buffer": 5, "resolution": 4}
    return ShardDataModule(sources["train"], validation_sources=sources["validation"], **(settings | changes))


def take(data: Any, count: int) -> list[Batch]:
    return [batch for batch, _ in zip(data.train_dataloader(), range(count), strict=False)]


def test_the_same_samples_come_with_the_same_captions_as_their_tokens(
    shards: dict[str, list[str]], write: Callable[..., Any], cached: Callable[..., CachedDataModule]
) -> None:
    """Validation, where nothing is shuffled; in training a broken picture shifts the blocks that are shuffled."""
    reports = write()
    assert [report.samples for report in reports] == [6, 8, 5]
    assert reports[0].skipped == {"decode: UnidentifiedImageError": 1}
    for ours, theirs in zip(cached().val_dataloader(), images(shards).val_dataloader(), strict=True):
        assert (ours.keys, ours.captions) == (theirs.keys, theirs.captions)
        assert ours.codes is not None
        assert torch.equal(ours.codes, encode(theirs.images))
        assert len(ours) == len(theirs)


def test_training_goes_through_the_same_order(
    shards: dict[str, list[str]], write: Callable[..., Any], cached: Callable[..., CachedDataModule]
) -> None:
    del shards["train"][0]  # the shard with the broken picture
    write()
    pairs = list(zip(take(cached(), 7), take(images(shards), 7), strict=True))
    assert [ours.keys for ours, _ in pairs] == [theirs.keys for _, theirs in pairs]
    assert [ours.captions for ours, _ in pairs] == [theirs.captions for _, theirs in pairs]


def test_captions_are_drawn_by_weight_with_their_own_features(
    write: Callable[..., Any], cached: Callable[..., CachedDataModule]
) -> None:
    write()
    drawn = []
    for batch in take(cached(batch_size=7), 150):
        assert batch.text is not None
        pooled, context, mask = batch.text
        assert pooled.dtype == context.dtype == torch.float16
        expected = describe(batch.captions)
        assert torch.equal(pooled.float(), expected.pooled)
        assert torch.equal(mask.sum(1), expected.pooled[:, 0].long())
        assert mask.any(0).all()  # no padding that no caption uses
        assert torch.equal(context.float(), expected.context[:, : mask.shape[1]] * mask[..., None])
        drawn += [caption for caption, key in zip(batch.captions, batch.keys, strict=True) if key.endswith("900000006")]
    shares = {caption: drawn.count(caption) / len(drawn) for caption in set(drawn)}
    assert len(drawn) > 50
    assert shares == pytest.approx({"picture 9": 1 / 3, "a long caption": 1 / 3, "another one": 1 / 3}, abs=0.15)
    assert batch.empty is not None
    assert torch.equal(batch.empty[0].float(), describe([""]).pooled)


def test_features_get_noise_in_training_alone(
    shards: dict[str, list[str]], write: Callable[..., Any], cached: Callable[..., CachedDataModule]
) -> None:
    write(latents)
    expected = [latents(batch.images) for batch in images(shards).val_dataloader()]
    held = list(cached(noise=0.5).val_dataloader())
    for batch, wanted in zip(held, expected, strict=True):
        torch.testing.assert_close(batch.features, wanted, rtol=1e-3, atol=1e-3)
    still, noisy, again = (take(cached(noise=noise), 20) for noise in (0.0, 0.5, 0.5))
    difference = torch.stack([a.features - b.features for a, b in zip(still, noisy, strict=True)])
    assert difference.std() == pytest.approx(0.5, rel=0.1)
    assert all(torch.equal(a.features, b.features) for a, b in zip(noisy, again, strict=True))
    first = {key: row for batch in noisy for key, row in zip(batch.keys, batch.features, strict=True)}
    assert any(
        not torch.equal(first[key], row) for batch in noisy for key, row in zip(batch.keys, batch.features, strict=True)
    ), "another pass draws other noise"


def test_one_of_several_copies_is_drawn_anew_in_every_pass(
    write: Callable[..., Any], cached: Callable[..., CachedDataModule]
) -> None:
    numbers = iter(range(1000))
    write(lambda pixels: torch.tensor([[next(numbers)] for _ in pixels]), copies=3)
    found: dict[str, set[int]] = {}
    for batch in take(cached(batch_size=7), 60):
        assert batch.codes is not None
        for key, code in zip(batch.keys, batch.codes[:, 0].tolist(), strict=True):
            found.setdefault(key, set()).add(code)
    assert {len(codes) for codes in found.values()} == {3}
    assert len(set.union(*found.values())) == 3 * len(found)
    held = [batch.codes for _ in range(2) for batch in cached().val_dataloader()]
    assert torch.equal(held[0], held[2])


def test_a_stopped_run_leaves_whole_shards_and_the_next_one_adds_the_rest(
    shards: dict[str, list[str]], write: Callable[..., Any], tmp_path: Path
) -> None:
    write()
    folder = tmp_path / "cache" / "train" / "mine"
    whole = {file.name: file.read_bytes() for file in folder.glob("*.tar")}
    (folder / "00001.tar").unlink()
    asked = iter([True, False])
    cacher = ShardCacher(SampleReader(CAPTIONS, parse_filters({}), ImageTransform((4, 4))), encode, describe, 4)
    task = tasks_of([ShardSource(tuple(shards["train"]), name="mine")], tmp_path / "cache" / "train")[1]
    with pytest.raises(SystemExit):
        cacher.write(task, alive=lambda: next(asked))
    assert sorted(file.name for file in folder.iterdir() if file.suffix != ".json") == ["00000.tar"]
    assert len(write()) == 1
    assert {file.name: file.read_bytes() for file in folder.glob("*.tar")} == whole


def test_a_shard_that_cannot_be_opened_is_not_written_and_a_broken_one_is(
    write: Callable[..., Any], shards: Any
) -> None:
    path = Path(shards["train"][1])
    content = path.read_bytes()
    path.unlink()
    reports = write()
    assert [report.missing for report in reports] == [None, "shard: FileNotFoundError", None]
    path.write_bytes(content[:4000])
    again = write()
    assert [(report.samples, report.missing) for report in again] == [(1, None)]
    assert again[0].skipped["shard: ReadError"] == 1


def test_flipped_bits_are_skipped_and_counted(
    write: Callable[..., Any], cached: Callable[..., CachedDataModule], tmp_path: Path
) -> None:
    write()
    shard = tmp_path / "cache" / "validation" / "mine" / "held.tar"
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        members = [member for member in tar if member.name.endswith(("codes.npy", "context.npy"))]
    for member in (members[0], members[3]):
        data[member.offset_data + member.size - 1] ^= 4
    shard.write_bytes(data)
    batches = list(cached().val_dataloader())
    assert sum(map(len, batches)) == 3
    assert sum(batch.skipped.get("cache: checksum", 0) for batch in batches) == 2


def test_a_cache_of_something_else_is_an_error_with_both_names(
    write: Callable[..., Any], cached: Callable[..., CachedDataModule], caplog: pytest.LogCaptureFixture
) -> None:
    write()
    right = {"tokenizer": "T1", "text_encoder": "E1", "schedule": "1 2"}

    def setup(data: CachedDataModule, **parts: Any) -> None:
        data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(**(right | parts)), limit_val_batches=1)  # type: ignore[assignment]
        data.setup("fit")

    setup(cached())
    with pytest.raises(ValueError, match=r"tokenizer T1, this run has T2: set paths\.tokenizer"):
        setup(cached(), tokenizer="T2")
    with pytest.raises(ValueError, match="schedule 1 2, this run has 1 3"):
        setup(cached(), schedule="1 3")
    with pytest.raises(ValueError, match=r"text_encoder E1, this run has E2: .*data\.text=captions"):
        setup(cached(), text_encoder="E2")
    setup(cached(text="captions"), text_encoder="E2")
    setup(cached(), text_encoder=None)
    assert "without knowing whether" in caplog.text
    data = cached()
    setup(data)
    data.trainer.lightning_module.tokenizer = "T2"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="T2"):
        data.train_dataloader()


def test_latents_fit_other_schedules(write: Callable[..., Any], cached: Callable[..., CachedDataModule]) -> None:
    write(latents)
    data = cached()
    module = SimpleNamespace(tokenizer="T1", text_encoder="E1", schedule="1 1 2")
    data.trainer = SimpleNamespace(lightning_module=module, limit_val_batches=1)  # type: ignore[assignment]
    data.setup("fit")
    assert next(iter(data.train_dataloader())).features is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": 0.1}, r"data\.noise=0\.1 needs a cache of latents"),
        ({"noise": -1.0}, "negative"),
        ({"text": "words"}, r"data\.text must be one of auto, features, captions"),
        ({"text": "features"}, "has captions alone"),
        ({"sources": {"mine": {"weight": 0.0}}}, r"no source with a weight above 0 .it has mine"),
        ({"batch_size": 0}, r"data\.batch_size"),
    ],
)
def test_what_cannot_work_fails_at_once(
    write: Callable[..., Any], cached: Callable[..., CachedDataModule], changes: dict[str, Any], message: str
) -> None:
    write(text=False)
    with pytest.raises(ValueError, match=message):
        cached(**changes)


def test_weights_of_other_sources_are_left_out(
    write: Callable[..., Any], cached: Callable[..., CachedDataModule]
) -> None:
    write()
    sources = {"laion": {"weight": 1.0}, "mine": {"weight": 0.5}}
    (source,) = cached(sources=sources).train_stream.sources
    assert (source.name, source.weight) == ("mine", 0.5)


def test_without_a_cache_the_message_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m star\.data\.cache"):
        CachedDataModule(tmp_path, identify=identify, batch_size=1)
    with pytest.raises(ValueError, match=r"data\.directory is null"):
        CachedDataModule(None, identify=identify, batch_size=1)
    (tmp_path / "cache.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        read_header(tmp_path)


def test_what_does_not_fit_the_format_is_an_error(write: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="70000 doesn't fit 16 bits"):
        write(lambda pixels: torch.full((len(pixels), 1), 70_000))
    with pytest.raises(ValueError, match="fp16 can't hold"):
        write(lambda pixels: torch.full((len(pixels), 1, 1, 1), 1e6))
    with pytest.raises(ValueError, match="fp16 can't hold"):
        write(lambda pixels: torch.full((len(pixels), 1, 1, 1), float("nan")))


def test_two_shards_of_one_name_keep_both(tmp_path: Path) -> None:
    source = ShardSource(("a/x.tar", "b/x.tar", "b/y.tar"), name="mine")
    assert [task.target.name for task in tasks_of([source], tmp_path)] == ["x_00000.tar", "x_00001.tar", "y.tar"]


def test_headers_differ_by_what_decides_samples() -> None:
    header = CacheHeader("codes", 1, "T", "1 2", {"crop": "center"}, {"train": {"a": 1.0}})
    assert header.differences(replace(header, sources={})) == []
    assert header.differences(replace(header, kind="latents", prepared={"crop": "random"})) == ["kind", "prepared"]


@pytest.mark.parametrize(
    "record", [b"[1]", b'{"captions": null, "weights": [1]}', b'{"captions": ["a"], "weights": ["1"]}']
)
def test_a_damaged_record_is_skipped(record: bytes) -> None:
    reader = CachedReader("codes", noise=0.0, augment=False, text=False)
    with pytest.raises(SkipSample, match="cache: TypeError"):
        reader(RawSample("1", {"json": record}), key="mine/a/1", rng=random.Random(0))
