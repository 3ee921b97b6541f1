from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from star.checkpoints.official import load_class_labels, load_transformer
from star.checkpoints.official_names import transformer_names
from star.schedule import ScaleSchedule

NAMES = transformer_names(class_conditional=True)


@pytest.mark.parametrize("kind", ["adaln", "saln"])
def test_logits_blocks_loss_and_gradients(kind: str, golden: Any) -> None:
    case, facts, weights = (
        golden(f"var_tiny_{kind}_64"),
        golden.facts(f"var_tiny_{kind}_64"),
        golden(f"var_tiny_{kind}.weights"),
    )
    schedule = ScaleSchedule.square(*facts["patch_nums"])
    model = load_transformer(weights, schedule=schedule)
    labels = load_class_labels(weights)
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    logits = model(case["x_wo_first"], labels(case["labels"].tolist()), schedule)
    golden.close(logits, case["logits"], 1e-4)
    for number, output in enumerate(outputs):
        golden.close(output, case[f"block{number}_out"], 2e-4)

    loss = F.cross_entropy(logits.flatten(0, 1), case["gt_idx"].flatten())
    loss.backward()
    assert loss.item() == pytest.approx(facts["loss"], abs=1e-5)
    gradients = {NAMES(name): parameter.grad for name, parameter in model.named_parameters()} | {
        "class_emb.weight": labels.embedding.weight.grad
    }
    for name, norm in facts["grad_l2_norm"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("kind", ["adaln", "saln"])
def test_the_last_class_is_the_empty_one(kind: str, golden: Any) -> None:
    case, weights = golden(f"var_tiny_{kind}_64"), golden(f"var_tiny_{kind}.weights")
    schedule = ScaleSchedule.square(*golden.facts(f"var_tiny_{kind}_64")["patch_nums"])
    model, labels = load_transformer(weights, schedule=schedule), load_class_labels(weights)
    with torch.no_grad():
        logits = model(case["x_wo_first"], labels(["", ""]), schedule)
    golden.close(logits, case["logits_null_class"], 1e-4)


@pytest.mark.parametrize("kind", ["adaln", "saln"])
def test_all_scales_of_256(kind: str, golden: Any) -> None:
    name = f"var_tiny_{kind}_greedy_256"
    case, weights = golden(name), golden(f"var_tiny_{kind}.weights")
    schedule = ScaleSchedule.square(*golden.facts(name)["patch_nums"])
    model, labels = load_transformer(weights, schedule=schedule), load_class_labels(weights)
    with torch.no_grad():
        logits = model(case["teacher_forcing.x_wo_first"], labels(case["teacher_forcing.label"].tolist()), schedule)
    golden.close(logits[:, ::5], case["teacher_forcing.logits_every_5th_token"], 1e-4)
