from __future__ import annotations

import io
import random
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from star.data.captions import Captions
from star.data.filters import parse_filters
from star.data.samples import SampleReader
from star.data.shards import RawSample
from star.data.skips import SkipSample
from star.data.transforms import ImageTransform

READER = SampleReader(
    Captions({"txt": 1.0}),
    parse_filters({"aesthetic": {"min": 5}, "short_side": {"min": 8}, "aspect_ratio": {"max": 2}}),
    ImageTransform((4, 4)),
    max_pixels=1000,
)


def read(files: dict[str, bytes]) -> tuple[torch.Tensor, str]:
    sample = READER(RawSample("1", files), key="mine/0/1", rng=random.Random(0))
    assert sample.key == "mine/0/1"
    return sample.image, sample.caption


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp"])
def test_a_pair_is_decoded_and_captioned(encode: Callable[..., bytes], extension: str) -> None:
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}[extension]
    files = {"txt": b"a <b>red</b> square", "json": b'{"aesthetic": 6}', extension: encode(kind=kind)}
    image, caption = read(files)
    assert caption == "a red square"
    assert torch.allclose(image[:, 0, 0].float(), torch.tensor([255.0, 0.0, 0.0]), atol=5)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"png": None}, "image: missing"),
        ({"png": b"<html>"}, "decode: UnidentifiedImageError"),
        ({"png": "cut"}, "decode: OSError"),
        ({"png": (32, 32)}, "decode: DecompressionBombError"),
        ({"png": (7, 8)}, "filter: short_side"),
        ({"png": (8, 17)}, "filter: aspect_ratio"),
        ({"txt": None}, "caption: missing"),
        ({"txt": b"<br/>"}, "caption: empty"),
        ({"txt": b"caf\xe9"}, "caption: UnicodeDecodeError"),
        ({"json": b"{"}, "json: JSONDecodeError"),
        ({"json": b"[1]"}, "json: TypeError"),
        ({"json": b"\xff"}, "json: UnicodeDecodeError"),
        ({"json": b'{"aesthetic": 1%s}' % (b"0" * 400)}, "filter: aesthetic missing"),
        ({"txt": b"&#%s;" % (b"1" * 5000)}, "caption: ValueError"),
        ({"json": b'{"aesthetic": 4}'}, "filter: aesthetic"),
        ({"json": None}, "filter: aesthetic missing"),
    ],
)
def test_damage_is_a_skip_with_its_cause(encode: Callable[..., bytes], change: dict, cause: str) -> None:
    files = {"png": encode(), "txt": b"a red square", "json": b'{"aesthetic": 6}'}
    for name, value in change.items():
        if value == "cut":
            value = encode(kind="JPEG", size=(31, 31))[:-40]
        elif isinstance(value, tuple):
            value = encode(size=value)
        files[name] = value
    with pytest.raises(SkipSample) as skip:
        read({name: value for name, value in files.items() if value is not None})
    assert skip.value.cause == cause


def test_a_whole_sample_has_all_captions_and_a_draw_for_each_random_number(encode: Callable[..., bytes]) -> None:
    reader = SampleReader(
        Captions({"txt": 1.0, "long": 3.0}), parse_filters({}), ImageTransform((4, 4), crop="random", flip=True)
    )
    buffer = io.BytesIO()
    Image.linear_gradient("L").rotate(90).resize((32, 8)).convert("RGB").save(buffer, "PNG")
    files = {"png": buffer.getvalue(), "txt": b"one", "json": b'{"long": ["two", "three"]}'}
    raw = RawSample("1", files)
    whole = reader.whole(raw, rngs=[random.Random(seed) for seed in (1, 2, 1)])
    assert (whole.captions, whole.weights) == (["one", "two", "three"], [1.0, 1.5, 1.5])
    assert whole.images.shape == (3, 3, 4, 4)
    assert torch.equal(whole.images[0], whole.images[2])
    assert not torch.equal(whole.images[0], whole.images[1])
    with pytest.raises(SkipSample, match="image: missing"):
        reader.whole(RawSample("1", {"txt": b"one"}), rngs=[random.Random(0)])
