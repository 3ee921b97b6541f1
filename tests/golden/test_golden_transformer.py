from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.checkpoints.official import dump_transformer, load_transformer
from star.checkpoints.official_names import transformer_names
from star.nn.position import Rotary2D
from star.schedule import ScaleSchedule

NAMES = transformer_names(class_conditional=False)
KINDS = ["rope", "abs"]


def watch_blocks(model: nn.Module) -> list[Tensor]:
    """Where the output of every block will be found after a call."""
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _args, output: seen.append(output))
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_all_scales_of_256(kind: str, golden: Any) -> None:
    case = golden(f"star_tiny_{kind}_256_B1")
    schedule = ScaleSchedule.square(*golden.facts(f"star_tiny_{kind}_256_B1")["patch_nums"])
    for first_sample_text in (False, True):  # one row is its own first
        model = load_transformer(
            golden(f"star_tiny_{kind}.weights"), schedule=schedule, first_sample_text=first_sample_text
        )
        with torch.no_grad():
            logits, hidden = model(case["x_wo_first"], golden.texts(case), schedule, return_hidden=True)
        golden.close(logits[:, ::5], case["logits_every_5th_token"], 1e-4)
        golden.close(hidden, case["last_hidden"], 2e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", ["B1_sample0", "B1_sample1", "B2_official", "B2_fixed"])
def test_logits_blocks_loss_and_gradients(kind: str, run: str, golden: Any) -> None:
    case, facts = golden(f"star_tiny_{kind}_64"), golden.facts(f"star_tiny_{kind}_64")
    schedule = ScaleSchedule.square(*facts["patch_nums"])
    rows = {"B1_sample0": slice(0, 1), "B1_sample1": slice(1, 2)}.get(run, slice(0, 2))
    model = load_transformer(
        golden(f"star_tiny_{kind}.weights"), schedule=schedule, first_sample_text=run == "B2_official"
    )
    blocks = watch_blocks(model)
    logits, hidden = model(case["x_wo_first"][rows], golden.texts(case, rows), schedule, return_hidden=True)
    golden.close(logits, case[f"{run}.logits"], 1e-4)
    golden.close(hidden, case[f"{run}.last_hidden"], 2e-4)
    for number, output in enumerate(blocks):
        golden.close(output, case[f"{run}.block{number}_out"], 2e-4)

    expected = facts["loss_and_grads"][run]
    loss = F.cross_entropy(logits.flatten(0, 1), case["gt_idx"][rows].flatten())
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-5)
    gradients = {NAMES(name): parameter.grad for name, parameter in model.named_parameters()}
    norms = {name: norm for name, norm in expected["grad_l2_norm"].items() if norm is not None}
    assert set(gradients) == set(norms)
    for name, norm in norms.items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-7), name
    total = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients.values()))
    assert total == pytest.approx(expected["total_grad_norm"], rel=1e-4)
    for name, recorded in case.items():
        if name.startswith(f"{run}.grad."):
            golden.close(
                gradients[name.split(".grad.")[1]].view_as(recorded),
                recorded,
                1e-4 * recorded.abs().max().item() + 1e-7,
            )


def test_only_the_kept_tokens(golden: Any) -> None:
    case, facts = golden("star_tiny_drop"), golden.facts("star_tiny_drop")
    schedule = ScaleSchedule.square(*facts["patch_nums"])
    kept = case["keep"].nonzero().flatten()
    for name, first_sample_text in (("fixed", False), ("official", True)):
        model = load_transformer(
            golden("star_tiny_sampler.weights"), schedule=schedule, first_sample_text=first_sample_text
        )
        with torch.no_grad():
            logits, hidden = model(case["x_wo_first"], golden.texts(case), schedule, kept=kept, return_hidden=True)
        golden.close(hidden, case[f"{name}.last_hidden"], 2e-4)
        golden.close(logits[:, ::3], case[f"{name}.logits_every_3rd_token"], 1e-4)


@pytest.mark.parametrize("table", ["256", "512", "1024", "256_old", "256_nonorm"])
def test_rotary_tables(table: str, golden: Any) -> None:
    facts = golden.facts("rope_tables")["tables"][table]
    if facts["normalize"] > 0:
        position = Rotary2D(theta=facts["theta"], extent=facts["normalize"])
    else:
        position = Rotary2D("axial", theta=facts["theta"])
    cos, sin = position.rotation(ScaleSchedule.square(*facts["patch_nums"]), 64, torch.device("cpu"))
    recorded = golden("rope_tables")
    golden.close(torch.stack([cos, sin], -1)[recorded[f"{table}.rows"]], recorded[f"{table}.freqs_cis"], 1e-5)
    assert cos.double().sum().item() == pytest.approx(facts["checksum_real"], rel=1e-5)
    assert sin.double().sum().item() == pytest.approx(facts["checksum_imag"], rel=1e-5)


def test_rotary_table_of_a_model(golden: Any) -> None:
    schedule = ScaleSchedule.square(*golden.facts("star_tiny_rope_256_B1")["patch_nums"])
    model = load_transformer(golden("star_tiny_rope.weights"), schedule=schedule)
    cos, sin = model.position.rotation(schedule, 64, torch.device("cpu"))
    golden.close(torch.stack([cos, sin], -1), golden("star_tiny_rope_256_B1")["freqs_cis"].squeeze(), 1e-5)


def test_weights_survive_the_way_back(golden: Any) -> None:
    schedule = ScaleSchedule.square(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    official = golden("star_tiny_abs.weights")
    written = dump_transformer(
        load_transformer(official, schedule=schedule), class_embedding=official["class_emb.weight"]
    )
    assert written.keys() == official.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in official.items())
