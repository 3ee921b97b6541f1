from __future__ import annotations

import logging

import pytest
import torch

from star.models.conditioning import captions as captions_module
from star.models.conditioning.word_transformer import WordTransformer

CAPTIONS = ["a red circle", "", "a blue square above a red ring", "blue"]


def encoder(**changes: object) -> WordTransformer:
    torch.manual_seed(0)
    settings = {"width": 16, "depth": 2, "num_heads": 2, "max_tokens": 10, "vocabulary_size": 64, **changes}
    return WordTransformer(**settings)  # type: ignore[arg-type]


def test_condition_has_the_promised_shapes() -> None:
    condition = encoder()(CAPTIONS)
    assert condition.pooled.shape == (4, 16)
    assert condition.context is not None
    assert condition.context_mask is not None
    assert condition.context.shape == (4, 9, 16)
    assert condition.context_mask.sum(1).tolist() == [5, 2, 9, 3]


@pytest.mark.parametrize("kernel", [1, 3])
def test_padding_does_not_change_a_caption(kernel: int) -> None:
    model = encoder(kernel=kernel)
    batch = model(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        single = model([caption])
        length = single.context.shape[1]  # type: ignore[union-attr]
        torch.testing.assert_close(batch.pooled[row], single.pooled[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(batch.context[row, :length], single.context[0], rtol=0, atol=1e-6)  # type: ignore[index]


@pytest.mark.parametrize("kernel", [1, 3])
def test_batch_invariance_is_to_the_bit(kernel: int) -> None:
    model = encoder(kernel=kernel, batch_invariant=True)
    batch = model(CAPTIONS)
    assert torch.allclose(batch.pooled, encoder(kernel=kernel)(CAPTIONS).pooled, atol=1e-6)
    for row, caption in enumerate(CAPTIONS):
        single = model([caption])
        assert torch.equal(batch.context[row], single.context[0])  # type: ignore[index]
        assert torch.equal(batch.context_mask[row], single.context_mask[0])  # type: ignore[index]


def test_word_order_matters() -> None:
    model = encoder()
    swapped = model(["a red circle above a blue square", "a blue circle above a red square"]).pooled
    assert (swapped[0] - swapped[1]).abs().max() > 1e-4


@torch.no_grad()
def test_a_noun_knows_its_adjective_before_any_training() -> None:
    def change(kernel: int) -> float:
        model = encoder(width=64, kernel=kernel)
        red, blue = model(["a red circle and a blue square", "a blue circle and a red square"]).context[:, 3]  # type: ignore[index]
        return float((red - blue).norm() / red.norm())

    assert change(3) > 10 * change(1) > 0  # the same words, so attention that knows no places yet sees no difference


def test_all_of_it_is_trained_and_saved() -> None:
    model = encoder(words=["red"], kernel=3)
    condition = model(CAPTIONS)
    (condition.pooled.square().sum() + condition.context.square().sum()).backward()  # type: ignore[union-attr]
    assert model.trainable
    assert {name for name, _ in model.named_parameters()} == set(model.state_dict())
    assert all(parameter.grad is not None for parameter in model.parameters())
    other = encoder(words=["red"], kernel=3)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(CAPTIONS).pooled, model(CAPTIONS).pooled)


def test_listed_words_share_nothing_with_hashed_ones() -> None:
    model = encoder(vocabulary_size=1, num_hashes=1, words=["red", "blue"])
    pooled = model(["red", "blue", "green", "yellow"]).pooled
    assert torch.equal(pooled[2], pooled[3])
    assert not torch.equal(pooled[0], pooled[1])
    assert not torch.equal(pooled[0], pooled[2])


def test_learns_what_the_words_say_under_bf16_autocast() -> None:
    model = encoder(width=32, vocabulary_size=256)
    colors = ["red", "blue", "green"]
    texts = [f"a {first} circle above a {second} square" for first in colors for second in colors]
    labels = torch.tensor([first for first in range(3) for _ in range(3)])
    head = torch.nn.Linear(32, 3)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(50):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(head(model(texts).pooled).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_too_long_captions_are_cut_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(captions_module, "_warned_about", set())
    model = encoder()
    with caplog.at_level(logging.WARNING):
        cut = model(["one two three four five six seven eight nine", "x " * 50])
    assert len(caplog.records) == 1
    assert torch.equal(cut.pooled[0], model(["one two three four five six seven eight", "x " * 8]).pooled[0])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_heads": 3}, "num_heads 3"),
        ({"depth": 0}, "depth"),
        ({"max_tokens": 2}, "max_tokens"),
        ({"kernel": 4}, "odd number of words, 1 for none, got 4"),
        ({"context_width": 8}, "context_width=8"),
    ],
)
def test_refuses_impossible_settings(changes: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        encoder(**changes)


def test_identity_names_the_settings() -> None:
    assert encoder().identity == encoder().identity
    assert encoder().identity != encoder(words=["red"]).identity
    assert encoder().identity != encoder(kernel=3).identity
