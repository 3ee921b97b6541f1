from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor, nn

from star.models.conditioning import captions as captions_module
from star.models.conditioning.base import FrozenTextEncoder

CAPTIONS = ["ab", "", "abc", "xyz", "ab", "hello"]


class LetterNetwork(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.mix = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.dropout(self.mix(x + x.mean(1, keepdim=True)))


class LetterEncoder(FrozenTextEncoder):
    """A token is a letter, 0 ends every caption."""

    def __init__(self, **options: object) -> None:
        super().__init__(width=8, max_tokens=6, owner="letters", **options)  # type: ignore[arg-type]
        self.builds = 0
        self.encoded: list[tuple[int, ...]] = []

    @property
    def identity(self) -> str:
        return "letters"

    def build(self) -> nn.Module:
        self.builds += 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return LetterNetwork(8)

    def tokenize(self, caption: str) -> tuple[list[int], bool]:
        letters = [ord(letter) % 128 for letter in caption]
        return [*letters[: self.max_tokens - 1], 0], len(letters) >= self.max_tokens

    def encode_tokens(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        self.encoded += [tuple(row) for row in ids.tolist()]
        hidden = self.network(ids)
        return hidden[:, -1], hidden


class Parent(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"text": LetterEncoder(**options), "head": nn.Linear(8, 3)})


@pytest.fixture(autouse=True)
def _unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions_module, "_warned_about", set())


def test_condition_has_the_promised_shapes_and_a_valid_token_for_every_text() -> None:
    condition = LetterEncoder()(CAPTIONS)
    assert condition.pooled.shape == (6, 8)
    assert condition.context is not None
    assert condition.context_mask is not None
    assert condition.context.shape == (6, 6, 8)
    assert condition.context_mask.sum(1).tolist() == [3, 1, 4, 4, 3, 6]
    assert condition.context[~condition.context_mask].eq(0).all()


@pytest.mark.parametrize("options", [{}, {"pass_size": 2}, {"memoize": True}, {"batch_invariant": True}])
def test_batch_equals_single(options: dict[str, object]) -> None:
    encoder = LetterEncoder(**options)
    batch = encoder(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        single = LetterEncoder(**options)([caption])
        for together, alone in zip((batch.pooled, batch.context), (single.pooled, single.context), strict=True):
            torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-6)  # type: ignore[index]


def test_batch_invariance_is_to_the_bit_and_can_be_switched_on_later() -> None:
    encoder = LetterEncoder(memoize=True)
    encoder(CAPTIONS)
    encoder.batch_invariant = True
    batch = encoder(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        single = LetterEncoder(batch_invariant=True)([caption])
        assert torch.equal(batch.pooled[row], single.pooled[0])
        assert torch.equal(batch.context[row], single.context[0])  # type: ignore[index]


def test_permuting_the_captions_permutes_the_condition() -> None:
    encoder = LetterEncoder()
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    permuted, expected = encoder([CAPTIONS[i] for i in order]), encoder(CAPTIONS).select(order)
    torch.testing.assert_close(permuted.context, expected.context, rtol=0, atol=1e-6)
    torch.testing.assert_close(permuted.pooled, expected.pooled, rtol=0, atol=1e-6)


def test_weights_are_never_saved_nor_missed() -> None:
    parent = Parent()
    before = parent.state_dict()
    parent.inner["text"](CAPTIONS)
    assert sorted(parent.state_dict()) == sorted(before) == ["inner.head.bias", "inner.head.weight"]
    unloaded = Parent()
    assert unloaded.load_state_dict(parent.state_dict(), strict=True).missing_keys == []
    assert parent.load_state_dict(before, strict=True).unexpected_keys == []


def test_what_is_really_missing_is_still_reported() -> None:
    parent = Parent()
    parent.inner["text"].load()  # type: ignore[operator]
    with pytest.raises(RuntimeError, match=r"inner.head.bias"):
        parent.load_state_dict({"inner.head.weight": torch.zeros(3, 8)}, strict=True)


def test_nothing_to_optimise_and_no_gradient() -> None:
    encoder = LetterEncoder().load()
    assert list(encoder.parameters()) == []
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    assert not encoder(["ab"]).pooled.requires_grad


def test_stays_in_evaluation_mode() -> None:
    parent = Parent()
    encoder = parent.inner["text"]
    first = encoder(["abc"]).pooled
    parent.train()
    assert not encoder.training
    assert not encoder.network.training
    assert torch.equal(encoder(["abc"]).pooled, first)


def test_weights_are_read_on_first_use_and_once() -> None:
    encoder = LetterEncoder()
    assert encoder.builds == 0
    encoder(["a"])
    encoder.load()(["b"])
    assert encoder.builds == 1


def test_precision_is_the_encoders_own() -> None:
    parent = Parent()
    exact = parent.inner["text"](["abc"]).pooled
    parent.bfloat16()
    assert torch.equal(parent.inner["text"](["abc"]).pooled, exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(parent.inner["text"](["abc"]).pooled, exact)
    short = LetterEncoder(dtype="bf16")(["abc"])
    assert short.pooled.dtype == torch.float32
    assert not torch.equal(short.pooled, exact)
    torch.testing.assert_close(short.pooled, exact, rtol=0, atol=0.05)


def test_follows_the_parent_to_a_device() -> None:
    parent = Parent().to("meta")
    encoder = parent.inner["text"]
    assert encoder.device.type == "meta"
    assert encoder.network.mix.weight.device.type == "meta"
    loaded = Parent()
    loaded.inner["text"].load()  # type: ignore[operator]
    assert loaded.to("meta").inner["text"].network.mix.weight.device.type == "meta"


def test_features_made_in_inference_mode_can_be_trained_on() -> None:
    encoder = LetterEncoder(memoize=True)
    with torch.inference_mode():
        encoder(CAPTIONS)
    head = nn.Linear(8, 1)
    head(encoder(CAPTIONS).pooled).sum().backward()
    assert head.weight.grad is not None
    assert not encoder.network.mix.weight.is_inference()


def test_memo_changes_nothing_and_saves_work() -> None:
    plain, memoized = LetterEncoder(), LetterEncoder(memoize=True)
    for batch in (CAPTIONS, CAPTIONS[2:], ["new", "ab"]):
        expected, got = plain(batch), memoized(batch)
        torch.testing.assert_close(got.context, expected.context, rtol=0, atol=1e-6)
        torch.testing.assert_close(got.pooled, expected.pooled, rtol=0, atol=1e-6)
        assert torch.equal(got.context_mask, expected.context_mask)  # type: ignore[arg-type]
    assert len(memoized.encoded) == len({*CAPTIONS, "new"})
    known = memoized(CAPTIONS)
    assert torch.equal(known.context, memoized(CAPTIONS).context)  # type: ignore[arg-type]


def test_memo_is_bounded_even_by_a_batch_that_is_larger() -> None:
    encoder = LetterEncoder(memoize=True, memo_limit=2)
    assert torch.allclose(encoder(CAPTIONS).pooled, LetterEncoder()(CAPTIONS).pooled, atol=1e-6)
    assert encoder.memo is not None
    assert len(encoder.memo) == 2


def test_equal_captions_are_encoded_once() -> None:
    encoder = LetterEncoder()
    encoder(["ab", "ab", "ab"])
    assert len(encoder.encoded) == 1


def test_too_long_captions_are_cut_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    encoder = LetterEncoder()
    with caplog.at_level(logging.WARNING):
        cut = encoder(["abcdefgh", "abcdeX" * 100])
        encoder(["once more too long"])
    assert len(caplog.records) == 1
    assert "abcdefgh" in caplog.text
    assert torch.equal(cut.pooled[0], encoder(["abcde"]).pooled[0])


def test_copies_leave_the_weights_out_and_read_them_again() -> None:
    encoder = LetterEncoder().load()
    copied = copy.deepcopy(encoder)
    assert copied._held == ()
    assert torch.equal(copied(["ab"]).pooled, encoder(["ab"]).pooled)


@pytest.mark.parametrize("bad", ["a caption", [], [None], ["a", 3]])
def test_refuses_what_is_not_a_list_of_captions(bad: object) -> None:
    with pytest.raises(ValueError, match="caption"):
        LetterEncoder()(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dtype": "int8"}, "int8"),
        ({"pass_size": 0}, "pass_size 0"),
        ({"memoize": True, "memo_limit": 0}, "memo_limit=0"),
        ({"context_width": 9}, "context_width=9"),
    ],
)
def test_refuses_impossible_settings(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LetterEncoder(**options)
