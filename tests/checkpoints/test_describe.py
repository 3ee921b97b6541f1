from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from star.checkpoints.describe import describe, disagreements
from star.models.conditioning.class_label import ClassLabelEncoder
from star.models.conditioning.huggingface import HuggingFaceTextEncoder
from star.models.conditioning.openclip import OpenCLIPTextEncoder
from star.models.conditioning.word_transformer import WordTransformer
from star.models.refiner import Refiner
from star.models.tokenizer.autoencoder import Decoder, Encoder
from star.models.tokenizer.patches import PatchEncoder
from star.models.tokenizer.pyramid import PyramidEncoder, PyramidVQ
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.masks import ScaleMask
from star.nn.position import AbsolutePosition, Rotary2D
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.samplers import Gumbel, TopKTopP
from star.schedule import ScaleSchedule
from star.utils.instantiate import instantiate_trusted

SCHEDULE = ScaleSchedule(((1, 1), (2, 2), (2, 3)))
SIZES = {"depth": 2, "width": 32, "num_heads": 4, "codebook_size": 24, "code_width": 8, "num_levels": 3}


def star(**changes: Any) -> STARTransformer:
    options = {"pooled_width": 12, "context_width": 20, "position": Rotary2D()} | changes
    return STARTransformer(**SIZES | options)


def tokenizer(**changes: Any) -> MultiScaleTokenizer:
    layers = {"channels": 8, "multipliers": (1, 2), "num_res_blocks": 1, "code_width": 8, "groups": 4} | changes
    quantizer = MultiScaleVQ(24, 8, phi=ResidualConv(8, count=2, ratio=0.25), composition="independent")
    return MultiScaleTokenizer(encoder=Encoder(**layers), decoder=Decoder(**layers), quantizer=quantizer, conv_size=1)


ADAPTIVE = {"pooled_width": 32, "context_width": None, "position": AbsolutePosition(32, schedule=SCHEDULE)}
OBJECTS = [
    SCHEDULE,
    SCHEDULE.only(0, 2),
    ScaleMask(1),
    Rotary2D("axial", theta=100, extent=32),
    AbsolutePosition(32, schedule=SCHEDULE),
    star(),
    star(drop_path=0.1, mlp_ratio=2.5, qk_norm=False, logit_norm=False, level_embedding=False, mask=ScaleMask(1)),
    star(first_sample_text=True, backend="dense", first_length=4),
    star(adaptive_norm="own", **ADAPTIVE),
    star(adaptive_norm="shared", **ADAPTIVE),
    Refiner(**SIZES | {"depth": 3, "pooled_width": 12, "position": Rotary2D(), "drop_path": 0.1}),
    Refiner(**SIZES | {"pooled_width": 12, "position": Rotary2D(), "neighbourhood": 3}),
    tokenizer(),
    tokenizer(multipliers=(1, 1, 3), patch_size=2, attention=False, dropout=0.1, num_res_blocks=2),
    tokenizer(channels=4, multipliers=(2, 4)),
    PatchEncoder(width=12, depth=3, code_width=8, patch_size=4),
    PatchEncoder(width=12, depth=3, code_width=8, patch_size=4, seen_size=2),
    PyramidEncoder(width=12, depth=2, code_width=8, patch_sizes=[8, 4, 2], seen_size=4),
    MultiScaleTokenizer(
        encoder=PyramidEncoder(width=12, depth=2, code_width=8, patch_sizes=[8, 4]),
        decoder=Decoder(channels=8, multipliers=(1, 2), num_res_blocks=1, code_width=8, patch_size=2, groups=4),
        quantizer=PyramidVQ(9, 8, phi=ResidualConv(8), patch_sizes=[8, 4]),
        conv_size=0,
    ),
    ClassLabelEncoder(10, 32),
    WordTransformer(width=8, depth=1, num_heads=2, max_tokens=9, vocabulary_size=20, num_hashes=3, words=["red"]),
    WordTransformer(width=8, depth=2, num_heads=2, max_tokens=9, vocabulary_size=20, kernel=5),
    OpenCLIPTextEncoder("ViT-B-32", weights=None, layers=3, memoize=True, memo_limit=7, dtype="bf16"),
    HuggingFaceTextEncoder("some/where", pooling="eos", layer=2, max_tokens=9, pooled_width=24, tokenizer="else/where"),
    ClassifierFreeGuidance(2.0, ramp="constant", off_after=-3, on_from=1),
    TopKTopP(7, 0.5, temperature=2.0),
    Gumbel(0.3, top_k=4),
]


def shapes(value: Any) -> dict[str, tuple[int, ...]] | None:
    if not isinstance(value, torch.nn.Module):
        return None
    return {name: tuple(tensor.shape) for name, tensor in value.state_dict().items()}


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_what_is_described_is_built_again(value: Any) -> None:
    config = describe(value)
    again = instantiate_trusted(config)
    assert type(again) is type(value)
    assert describe(again) == config
    assert shapes(again) == shapes(value)


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_nothing_that_decides_a_result_is_left_out(value: Any) -> None:
    """Else an argument that a class gains would be lost on the way through a folder."""
    irrelevant = {"zero_init", "batch_invariant", "pooled_width", "context_width", "memo_limit", "levels"}
    wanted = {
        name
        for name, parameter in inspect.signature(type(value)).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    assert wanted - irrelevant <= describe(value).keys()


def test_an_object_that_forgets_its_arguments_is_refused() -> None:
    with pytest.raises(ValueError, match="a Linear doesn't keep its"):
        describe(torch.nn.Linear(2, 2))


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    class Mine(STARTransformer):
        pass

    options = SIZES | {"pooled_width": 12, "context_width": 20, "position": Rotary2D()}
    with pytest.raises(ValueError, match="Mine doesn't keep"):
        describe(Mine(**options))


def test_differences_are_named() -> None:
    configured = {"depth": 30, "width": 64, "extra": 1, "backend": "auto"}
    held = {"depth": 16, "width": 64, "other": 2, "backend": "dense"}
    assert disagreements(configured, held, ignored=["backend"]) == ["depth: 16, not 30"]
