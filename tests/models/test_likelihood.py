from __future__ import annotations

from collections.abc import Callable

import torch

from star.models.likelihood import token_losses
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.sampling.decoder import DecodeState, ScaleWiseDecoder
from star.sampling.samplers import Greedy
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition


def test_what_is_drawn_greedily_is_likeliest_everywhere(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
) -> None:
    model = build_transformer()
    state: DecodeState = ScaleWiseDecoder(model, tokenizer, schedule, sampler=Greedy())(condition, None, [1, 2, 3])
    with torch.no_grad():
        losses, right = token_losses(model, tokenizer, state.codes, condition, schedule)
        logits = model(tokenizer.quantizer.teacher_forcing(state.codes, schedule), condition, schedule)
        other = [(codes + 1) % tokenizer.quantizer.codebook_size for codes in state.codes]
        wrong = token_losses(model, tokenizer, other, condition, schedule)[1]
    assert losses.shape == right.shape == (3, schedule.total)
    assert right.all()
    assert not wrong[:, 0].any()  # the first token's input is its text alone
    target = concatenate(state.codes)[..., None]
    torch.testing.assert_close(losses, -logits.float().log_softmax(2).gather(2, target)[..., 0])
    torch.testing.assert_close(losses, -logits.float().log_softmax(2).amax(2))
