from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from star.checkpoints.build import build
from star.checkpoints.describe import describe
from star.models.conditioning.word_transformer import WordTransformer
from star.models.transformer import STARTransformer


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_tensors_are_taken_over(build_transformer: Callable[..., STARTransformer]) -> None:
    model = build_transformer()
    built = build(describe(model), model.state_dict(), what="it")
    assert same(built, model)
    assert not built.training
    assert built.embed.weight.data_ptr() == model.embed.weight.data_ptr()


def test_other_classes_are_built_whole() -> None:
    encoder = WordTransformer(width=8, depth=1, num_heads=2, vocabulary_size=20)
    built = build(describe(encoder), encoder.state_dict(), what="it")
    assert same(built, encoder)
    assert torch.equal(built(["a red circle"]).pooled, encoder(["a red circle"]).pooled)


@pytest.mark.parametrize(
    ("stored", "computed", "held"),
    [
        ("float16", "float32", "float32"),
        ("float16", "float16", "float16"),
        ("float16", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "float32"),
        ("float16", None, "float16"),
    ],
)
def test_precision_decides_what_is_held(
    build_transformer: Callable[..., STARTransformer], stored: str, computed: str | None, held: str
) -> None:
    model = build_transformer()
    state = {name: value.to(getattr(torch, stored)) for name, value in model.state_dict().items()}
    precision = None if computed is None else getattr(torch, computed)
    built = build(describe(model), state, what="it", precision=precision)
    assert {value.dtype for value in built.parameters()} == {getattr(torch, held)}


def test_what_does_not_fit_is_in_one_table(build_transformer: Callable[..., STARTransformer]) -> None:
    model = build_transformer()
    state = {name: value for name, value in model.state_dict().items() if name != "level.weight"} | {
        "x": torch.zeros(1)
    }
    with pytest.raises(ValueError, match="the weights doesn't fit the model: 1 missing, 1 unexpected, 0 reshaped"):
        build(describe(model), state, what="the weights")


def test_a_strangers_choice_of_code_is_not_run(build_transformer: Callable[..., STARTransformer]) -> None:
    model = build_transformer()
    for target in ("os.system", "torch.nn.Linear"):
        config = describe(model) | {"position": {"_target_": target, "command": "touch pwned"}}
        with pytest.raises(ValueError, match="not one of this package's classes"):
            build(config, model.state_dict(), what="it")
