from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from star.checkpoints.official import load_refiner, load_tokenizer, load_transformer
from star.models.refiner import PrefixVisibility, Refiner
from star.models.transformer import STARTransformer
from star.nn.cache import KVCache
from star.sampling.causal_driven import CausalDriven
from star.sampling.decoder import ScaleWiseDecoder
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.reveal import RevealSchedule
from star.sampling.samplers import Greedy
from star.schedule import ScaleSchedule, concatenate
from star.utils.cli import compose, plain


def models(golden: Any, case: str, *, first_sample_text: bool) -> tuple[ScaleSchedule, STARTransformer, Refiner]:
    schedule = ScaleSchedule.square(*golden.facts(case)["patch_nums"])
    weights = golden("star_tiny_sampler.weights")
    transformer = load_transformer(weights, schedule=schedule, first_sample_text=first_sample_text)
    return schedule, transformer, load_refiner(weights, schedule=schedule)


def released_loss(logits: Tensor, codes: Tensor, known: Tensor, total: int) -> Tensor:
    """The release's own objective, which is not the paper's: V + 1 classes, the extra one for known tokens."""
    mask = known.float()[..., None]
    logits = torch.cat([logits * (1 - mask), 10 * mask], -1)
    targets = torch.where(known, logits.shape[-1] - 1, codes)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / total / len(codes)


@pytest.mark.parametrize("run", ["official", "fixed"])
def test_several_scales_at_once(run: str, golden: Any) -> None:
    case, facts = golden("star_tiny_sampler_forward"), golden.facts("star_tiny_sampler_forward")
    schedule, transformer, refiner = models(golden, "star_tiny_sampler_forward", first_sample_text=run == "official")
    scales = range(facts["from_idx"], len(schedule))
    late, known = slice(facts["bg_last"], facts["ed_last"]), case["mask"].bool()
    with torch.no_grad():
        _, hidden = transformer(case["x_wo_first"], golden.texts(case), schedule, return_hidden=True)
        logits = refiner(hidden[:, late], case["embed_Cvae"], known, golden.texts(case), schedule, scales)
    golden.close(logits, case[f"{run}.logits_sampler"], 1e-4)
    loss = released_loss(logits, case["gt_idx"][:, late], known, schedule.total)
    assert loss.item() == pytest.approx(facts["train_loss"][run], abs=1e-5)


def test_what_each_token_sees(golden: Any) -> None:
    facts = golden.facts("star_tiny_sampler_forward")
    part = ScaleSchedule.square(*facts["patch_nums"][facts["from_idx"] :])
    seen = PrefixVisibility((0, *(1 + offset for offset in part.offsets)), first=()).bias() == 0
    assert torch.equal(seen, golden("star_tiny_sampler_forward")["attn_mask"][0, 0].bool())


@pytest.mark.parametrize("run", ["v1024.official", "v1024.fixed", "vnew.official"])
@torch.no_grad()
def test_every_step_of_the_released_sampling(run: str, golden: Any) -> None:
    case, facts = golden("star_tiny_sampler_infer"), golden.facts("star_tiny_sampler_infer")
    schedule, transformer, refiner = models(golden, "star_tiny_sampler_infer", first_sample_text="official" in run)
    tokenizer = load_tokenizer(golden("vqvae_tiny.weights"), schedule=schedule)
    quantizer, condition, cache = tokenizer.quantizer, golden.texts(case), KVCache(schedule)
    steps = facts["runs"][run]["steps"]

    def guided(logits: Tensor, strength: float) -> Tensor:
        conditional, unconditional = logits.chunk(2)
        return (1 + strength) * conditional - strength * unconditional

    f_hat, drawn = quantizer.start(1, schedule), []
    for k in range(len(schedule)):
        x_in = quantizer.next_input(f_hat, k, schedule).repeat(2, 1, 1) if k else None
        hidden = transformer.step(x_in, condition, schedule, k, cache)
        own = transformer.head(hidden)
        codes = guided(own, facts["cfg"] * k / (len(schedule) - 1)).argmax(-1)
        known = torch.zeros_like(codes, dtype=torch.bool)
        for step in (step for step in steps if step["si"] == k):
            name = f"{run}.s{k}.{step['step']}"
            logits = own
            if step["source"] == "sampler":
                logits = refiner.step(hidden, quantizer.lookup(codes), known, condition, schedule, k)
            probabilities = guided(logits, step["cfg_t"]).softmax(-1)
            assert torch.equal(probabilities.argmax(-1), case[f"{name}.idx"].long()), name
            if f"{name}.conf" in case:
                recorded = case[f"{name}.conf"]
                free = recorded.isfinite() & ~known
                golden.close(probabilities.amax(-1)[free], recorded[free], 1e-4)
            after = case[f"{name}.mask_after"].bool()
            codes = torch.where(after & ~known, case[f"{name}.idx"].long(), codes)
            known = after
        f_hat = quantizer.accumulate(f_hat, codes, k, schedule)
        drawn.append(codes)
    assert torch.equal(concatenate(drawn), case[f"{run}.idx_all"])
    if f"{run}.f_hat" in case:
        golden.close(f_hat, case[f"{run}.f_hat"], 5e-6)
        golden.close(tokenizer.decode(f_hat).add(1).div(2), case[f"{run}.image"], 3e-5)


class Recorded(CausalDriven):
    """The release as it was recorded: the likeliest code instead of a drawn one, and the recorded random orders."""

    def __init__(self, orders: Iterable[Tensor], **settings: Any) -> None:
        super().__init__(top_k=0, top_p=0.0, coarse=Greedy(), return_trace=True, **settings)
        self.orders = iter(orders)

    def draw(self, logits: Tensor, streams: Any) -> tuple[Tensor, Tensor]:
        confidence, codes = logits.softmax(-1).max(-1)
        return codes, confidence

    def shuffle(self, codes: Tensor, streams: Any) -> Tensor:
        return next(self.orders)


def preset(name: str, **changes: Any) -> dict[str, Any]:
    """The settings of conf/sampling/release_1024.yaml that decide the order, as they stand there."""
    settings = plain(compose("sample", [f"sampling={name}"]))["sampling"]["sampler"]
    dropped = ("_target_", "top_k", "top_p", "coarse", "return_trace")
    return {key: value for key, value in settings.items() if key not in dropped} | changes


@pytest.mark.parametrize("run", ["v1024.official", "v1024.fixed", "vnew.official"])
def test_the_released_sampling_is_a_preset_of_ours(run: str, golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token, every revealed position and every recorded confidence, through decoder and sampler themselves."""
    monkeypatch.setenv("STAR_CONF", str(Path(__file__).parents[2] / "conf"))
    case, facts = golden("star_tiny_sampler_infer"), golden.facts("star_tiny_sampler_infer")
    schedule, transformer, refiner = models(golden, "star_tiny_sampler_infer", first_sample_text="official" in run)
    tokenizer = load_tokenizer(golden("vqvae_tiny.weights"), schedule=schedule)
    names = [f"{run}.s{step['si']}.{step['step']}" for step in facts["runs"][run]["steps"]]
    changes = {} if "1024" in run else {"steps": 8, "generator_steps": 0, "double_reveal": False}
    sampler = Recorded((case[f"{n}.rand"] for n in names if f"{n}.rand" in case), **preset("release_1024", **changes))
    guidance = ClassifierFreeGuidance(facts["cfg"])
    decoder = ScaleWiseDecoder(transformer, tokenizer, schedule, sampler=sampler, guidance=guidance, refiner=refiner)
    texts = golden.texts(case)
    state = decoder(texts.select(torch.tensor([0])), texts.select(torch.tensor([1])), [0])
    assert torch.equal(concatenate(state.codes), case[f"{run}.idx_all"])
    for k, trace in enumerate(state.traces):
        assert (trace is None) == (k < facts["config"]["sample_from_idx"])
        for step in range(0 if trace is None else len(trace.by_refiner)):
            name = f"{run}.s{k}.{step}"
            known = trace.revealed[:, : step + 1].any(1)
            assert torch.equal(known, case[f"{name}.mask_after"].bool()), name
            if f"{name}.conf" in case:
                free = case[f"{name}.conf"].isfinite() & ~trace.revealed[:, :step].any(1)
                golden.close(trace.confidence[:, step][free], case[f"{name}.conf"][free], 1e-4)
    if f"{run}.image" in case:
        golden.close(decoder.images(state), case[f"{run}.image"], 3e-5)


def test_how_many_tokens_each_step_reveals(golden: Any) -> None:
    facts = golden.facts("mask_schedule")
    for steps in (8, 15):
        for shape, tables in facts["val_to_mask"][f"step{steps}"].items():
            for side, expected in tables.items():
                assert list(RevealSchedule(steps, shape).counts(int(side) ** 2)) == expected, (steps, shape, side)
    for run in golden.facts("star_tiny_sampler_infer")["runs"].values():
        for k in {step["si"] for step in run["steps"]}:
            recorded = [step for step in run["steps"] if step["si"] == k]
            counts = RevealSchedule(len(recorded)).counts(recorded[0]["pn"] ** 2)
            assert list(counts) == [step["k"] for step in recorded]
