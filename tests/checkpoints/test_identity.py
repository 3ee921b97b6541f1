from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from star.checkpoints.identity import identify, tokenizer_identity
from star.models.conditioning.huggingface import HuggingFaceTextEncoder
from star.models.conditioning.openclip import OpenCLIPTextEncoder
from star.models.conditioning.word_transformer import WordTransformer
from star.models.tokenizer.patches import PatchEncoder
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.schedule import ScaleSchedule


def test_a_tokenizer_is_named_by_what_decides_codes(tokenizer: MultiScaleTokenizer) -> None:
    name = tokenizer_identity(tokenizer)
    assert re.fullmatch("[0-9a-f]{16}", name)
    with torch.no_grad():
        tokenizer.decoder.out.weight.add_(1)
        tokenizer.after.bias.add_(1)
    assert tokenizer_identity(tokenizer) == name
    tokenizer.quantizer.composition = "independent"
    assert tokenizer_identity(tokenizer) != name
    tokenizer.quantizer.composition = "residual"
    for weight in (tokenizer.encoder.out.weight, tokenizer.before.bias, tokenizer.quantizer.codebook.weight):
        with torch.no_grad():
            before = weight.clone()
            weight.view(-1)[0] += 1e-3
            assert tokenizer_identity(tokenizer) != name
            weight.copy_(before)
    assert tokenizer_identity(tokenizer) == name


def test_another_encoder_makes_another_name(tokenizer: MultiScaleTokenizer) -> None:
    names = {tokenizer_identity(tokenizer)}
    width, factor = tokenizer.quantizer.code_width, tokenizer.factor
    for depth in (1, 2):
        tokenizer.encoder = PatchEncoder(width=8, depth=depth, code_width=width, patch_size=factor)
        names.add(tokenizer_identity(tokenizer))
    assert len(names) == 3


def test_text_encoders_are_named_by_what_they_call_themselves() -> None:
    def named(encoder: Any) -> str | None:
        return identify(SimpleNamespace(text_encoder=encoder), "text_encoder")

    two, three = (
        named(OpenCLIPTextEncoder("ViT-L-14-quickgelu", weights="openai", layers=layers)) for layers in (10, 11)
    )
    assert two != three
    assert re.fullmatch(r"[0-9a-f]{16} \(openclip/ViT-L-14-quickgelu/openai/layers10/tokens77/fp32\)", str(two))
    assert str(named(WordTransformer(width=8, depth=1, num_heads=1))).endswith("trained along)")


def test_an_encoder_without_files_has_no_name(caplog: pytest.LogCaptureFixture) -> None:
    encoder = HuggingFaceTextEncoder("/nowhere/at/all", pooled_width=8, context_width=8)
    assert identify(SimpleNamespace(text_encoder=encoder), "text_encoder") is None
    assert "aren't here" in caplog.text


def test_a_schedule_is_its_own_name() -> None:
    assert identify(SimpleNamespace(schedule=ScaleSchedule.square(1, 2, 4)), "schedule") == "1 2 4"
