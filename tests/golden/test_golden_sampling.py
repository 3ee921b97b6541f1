from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from star.checkpoints.official import load_class_labels, load_tokenizer, load_transformer
from star.models.transformer import STARTransformer
from star.nn.cache import KVCache
from star.sampling.decoder import ScaleWiseDecoder
from star.sampling.filters import filter_logits, narrow
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.samplers import Greedy
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition, Draw

STAR_RUNS = [
    ("star_tiny_greedy_256_B1", "official"),
    ("star_tiny_greedy_256_B1", "fixed"),
    ("star_tiny_greedy_64_B1", "official"),
    ("star_tiny_greedy_64_B1", "fixed"),
    ("star_tiny_greedy_64_B2", "fixed"),
    ("star_tiny_greedy_64_B2_abs", "fixed"),
]
UNTIED = [0, 1, 2, 3, 4, 5, 7]  # rows of the filter's case without equal logits
VAR_RUNS = [f"var_tiny_{kind}_greedy_{size}" for kind in ("adaln", "saln") for size in (64, 256)]


class RecordingGreedy(Greedy):
    """Greedy, with the guided logits as its trace."""

    def __call__(self, hidden: Tensor, head: Any, guide: Any, k: int, state: Any) -> Draw:
        logits = guide(head(hidden), k)
        return Draw(logits.argmax(-1), trace=logits)


def recorded(case: dict[str, Tensor], run: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{run}."): value for name, value in case.items() if name.startswith(f"{run}.")}


def draw_greedily(
    golden: Any,
    transformer: STARTransformer,
    expected: dict[str, Tensor],
    condition: Condition,
    empty: Condition,
    facts: Any,
) -> None:
    """Decode, and compare codes after every scale, then logits, f_hat and images where they are recorded."""
    schedule = ScaleSchedule.square(*facts["patch_nums"])
    tokenizer = load_tokenizer(golden("vqvae_tiny.weights"), schedule=schedule)
    decoder = ScaleWiseDecoder(
        transformer, tokenizer, schedule, sampler=RecordingGreedy(), guidance=ClassifierFreeGuidance(facts["cfg"])
    )
    codes = schedule.split(expected["idx"])
    for k, state in enumerate(decoder.scales(condition, empty, seeds=range(len(condition)))):
        assert torch.equal(state.codes[k], codes[k]), f"scale {k}"
    golden.close(state.f_hat, expected["f_hat"], 5e-6)
    if "cfg_logits" in expected:
        golden.close(torch.cat(state.traces, 1), expected["cfg_logits"], 5e-4)
    if "image" in expected:
        golden.close(decoder.images(state), expected["image"], 3e-5)


@pytest.mark.parametrize(("name", "run"), STAR_RUNS)
def test_a_greedy_picture_scale_by_scale(name: str, run: str, golden: Any) -> None:
    case, facts = golden(name), golden.facts(name)
    kind = "abs" if name.endswith("abs") else "rope"
    schedule = ScaleSchedule.square(*facts["patch_nums"])
    weights = golden(f"star_tiny_{kind}.weights")
    transformer = load_transformer(weights, schedule=schedule, first_sample_text=run == "official")
    images = facts["B"]
    texts = golden.texts(case, slice(images)), golden.texts(case, slice(images, None))
    draw_greedily(golden, transformer, recorded(case, run), *texts, facts)


@pytest.mark.parametrize("name", VAR_RUNS)
def test_a_greedy_picture_of_a_class(name: str, golden: Any) -> None:
    case, facts = golden(name), golden.facts(name)
    weights = golden(name.split("_greedy")[0] + ".weights")
    transformer = load_transformer(weights, schedule=ScaleSchedule.square(*facts["patch_nums"]))
    labels = load_class_labels(weights)
    with torch.no_grad():
        condition, empty = labels(case["labels"].tolist()), labels([""])
    draw_greedily(golden, transformer, case, condition, empty, facts)


@pytest.mark.parametrize("name", ["star_tiny_greedy_64_B2", "star_tiny_greedy_64_B2_abs"])
@torch.no_grad()
def test_the_released_code_in_a_batch(name: str, golden: Any) -> None:
    """The first prompt's text branch goes to every row. Not by the decoder, which draws such prompts one at a time."""
    case, facts = golden(name), golden.facts(name)
    schedule, expected = ScaleSchedule.square(*facts["patch_nums"]), recorded(case, "official")
    weights = golden(f"star_tiny_{'abs' if name.endswith('abs') else 'rope'}.weights")
    transformer = load_transformer(weights, schedule=schedule, first_sample_text=True)
    tokenizer = load_tokenizer(golden("vqvae_tiny.weights"), schedule=schedule)
    quantizer, condition, cache = tokenizer.quantizer, golden.texts(case), KVCache(schedule)
    guidance = ClassifierFreeGuidance(facts["cfg"])
    f_hat, codes, logits = quantizer.start(2, schedule), [], []
    for k in range(len(schedule)):
        x_in = quantizer.next_input(f_hat, k, schedule).repeat(2, 1, 1) if k else None
        both = transformer.head(transformer.step(x_in, condition, schedule, k, cache)).chunk(2)
        logits.append(guidance(*both, k, schedule))
        codes.append(logits[-1].argmax(-1))
        f_hat = quantizer.accumulate(f_hat, codes[-1], k, schedule)
    assert torch.equal(concatenate(codes), expected["idx"])
    golden.close(concatenate(logits), expected["cfg_logits"], 5e-4)
    golden.close(f_hat, expected["f_hat"], 5e-6)
    golden.close(tokenizer.decode(f_hat).add(1).div(2), expected["image"], 3e-5)


def test_what_top_k_and_top_p_keep(golden: Any) -> None:
    case = golden("sampling_filter")
    settings = [name.removesuffix(".keep") for name in case if name.endswith(".keep")]
    assert len(settings) == 9
    for setting in settings:
        top_k, top_p = setting.removeprefix("k").split("_p")
        filtered = filter_logits(case["logits"], int(top_k), float(top_p))
        kept, expected = filtered.isfinite(), case[f"{setting}.keep"].bool()
        # which of several equal logits top-p drops is up to the machine's sort; how many isn't
        assert torch.equal(filtered.sort(-1).values, case["logits"].where(expected, -torch.inf).sort(-1).values), (
            setting
        )
        assert torch.equal(kept[:, UNTIED], expected[:, UNTIED]), setting
        if f"{setting}.probs" in case:
            probabilities = filtered.softmax(-1).sort(-1).values
            golden.close(probabilities, case[f"{setting}.probs"].sort(-1).values, 1e-6)


def test_the_candidates_are_those_that_are_kept(golden: Any) -> None:
    """Without a sort over the codebook, wherever equal logits leave no choice."""
    case = golden("sampling_filter")
    for setting in (name.removesuffix(".keep") for name in case if name.endswith(".keep")):
        top_k, top_p = setting.removeprefix("k").split("_p")
        values, codes, tied = narrow(case["logits"], int(top_k), float(top_p))
        if codes is not None:
            values = torch.full_like(case["logits"], -torch.inf).scatter(-1, codes, values)
        assert not tied[:, UNTIED].any(), setting
        assert torch.equal(values.isfinite()[:, UNTIED], case[f"{setting}.keep"].bool()[:, UNTIED]), setting
