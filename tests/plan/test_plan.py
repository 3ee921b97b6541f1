from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from star.plan.__main__ import main, plan, spread_of
from star.plan.memory import Memory, Spread, fixed, largest_batch, moments, with_batch
from star.plan.models import Models, build, count
from star.plan.request import composed, parse
from star.plan.table import advice, number, show
from star.training.optim import AdamW, MuonAdamW
from star.utils.cli import compose, plain
from star.utils.devices import DEVICES, GIB
from star.utils.instantiate import instantiate

ROOT = Path(__file__).parents[2]
NANO = ["stage=64", "model=nano", "tokenizer=nano", "text_encoder=word_transformer", "data=shapes"]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(ROOT / "conf"))


@cache
def planned(*arguments: str) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAR_CONF", str(ROOT / "conf"))
        return plan(parse(arguments))


@pytest.fixture
def big() -> dict[str, Any]:
    return planned("stage=1024", "model=d30", "trainer=fsdp", "devices=64", "gpu=a100")


def test_the_published_model(big: dict[str, Any]) -> None:
    """Paper, table 2: 1.68 B parameters; keys and values, and operations, as one counts them by hand."""
    assert big["parameters"]["transformer"] == pytest.approx(1.68e9, rel=0.01)
    assert big["parameters"]["tokenizer"] == pytest.approx(109e6, rel=0.01)
    assert big["tokens"] == {"all": 9451, "trained": 9451, "text": 77}
    assert big["sampling"]["kv_cache"] == 2 * 30 * 2 * 1920 * 9451 * 2
    blocks = 30 * 1920**2 * (4 + 2 + 8)  # what every token is multiplied with
    attention = 30 * 1920 * 4 * sum(side**2 * seen for side, seen in _seen(big))
    assert big["flops"]["forward"] == pytest.approx(2 * blocks * 9451 + attention, rel=0.03)
    assert (big["strategy"], big["devices"]) == ("fsdp", 64)


def _seen(big: dict[str, Any]) -> list[tuple[int, int]]:
    sides = [1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64]
    return [(side, sum(each**2 for each in sides[: k + 1])) for k, side in enumerate(sides)]


def test_everything_that_is_asked_for_has_a_name(big: dict[str, Any]) -> None:
    parts = {"weights", "narrow_copies", "gradients", "optimizer", "averages", "text_encoder", "tokenizer"}
    parts |= {"activations", "reserve"}
    assert parts < set(big["memory"])
    assert big["memory"]["total"] == sum(big["memory"][name] for name in parts)
    assert {"forward", "backward", "training_step", "sampling"} < set(big["flops"])
    assert big["batch"]["largest"] >= 1
    assert not big["batch"]["fits"]
    assert json.loads(json.dumps(big)) == big
    hours = big["cost"]["images"] * big["flops"]["training_step"] / (0.4 * 312e12) / 3600
    assert big["cost"]["gpu_hours"] == pytest.approx(hours)
    assert big["speed"]["images_per_second"] == pytest.approx(64 * 0.4 * 312e12 / big["flops"]["training_step"])


def test_sharding_spreads_what_is_trained() -> None:
    common = [*NANO, "gpu=h100"]
    alone, ddp, fsdp = (
        planned(*common, *rest)["memory"] for rest in ([], ["trainer=ddp", "devices=8"], ["trainer=fsdp", "devices=8"])
    )
    assert ddp == alone
    assert fsdp["optimizer"] == pytest.approx(alone["optimizer"] / 8, rel=1e-5)
    assert fsdp["averages"] == pytest.approx(alone["averages"] / 8, rel=1e-5)
    assert fsdp["weights"] > alone["weights"] / 8  # blocks are gathered
    assert fsdp["total"] < alone["total"]
    assert fsdp["activations"] == alone["activations"]
    hybrid = planned(*common, "trainer=fsdp_hybrid", "devices=32")
    assert hybrid["strategy"] == "fsdp, 4 x 8"
    assert hybrid["memory"] == fsdp


def test_strategies_by_whatever_name() -> None:
    def spread(strategy: Any, devices: int = 4) -> Spread:
        return spread_of({"trainer": {"strategy": strategy}}, devices)

    assert spread("auto", 1) == Spread("single", 1)
    assert spread("auto") == spread("ddp") == Spread("ddp", 4, buckets=True)
    assert spread("fsdp") == Spread("fsdp", 4, 4)
    assert spread({"_target_": "x.DDPStrategy", "gradient_as_bucket_view": True}) == Spread("ddp", 4)
    with pytest.raises(ValueError, match="4 devices can't be divided into 3"):
        spread({"_target_": "x.ShardedStrategy", "replicas": 3})


@pytest.mark.parametrize(
    ("change", "less"),
    [
        ("activation_checkpointing=full", "activations"),
        ("activation_checkpointing=2", "activations"),
        ("train_tokens=local_window", "activations"),
        ("optim=adamw8bit", "optimizer"),
        ("optim=muon", "optimizer"),
        ("trainer.precision=32-true", "narrow_copies"),
        ("callbacks.ema=null", "averages"),
    ],
)
def test_what_saves_memory_saves_it(change: str, less: str) -> None:
    before, after = planned(*NANO), planned(*NANO, change)
    assert after["memory"][less] < 0.95 * before["memory"][less]


def test_the_precision_is_the_planned_devices_own() -> None:
    assert planned(*NANO, "gpu=a100")["precision"] == "bf16-mixed"
    assert planned(*NANO, "gpu=v100")["precision"] == "16-mixed"
    assert planned(*NANO, "gpu=v100", "trainer.precision=32-true")["precision"] == "32-true"


def test_a_cache_saves_the_frozen_networks() -> None:
    before, after = planned("stage=256"), planned("stage=256", "data=cached")
    assert (after["flops"]["tokenizer"], after["flops"]["text_encoder"]) == (0, 0)
    assert after["memory"]["text_encoder"] == 0 < before["memory"]["text_encoder"]
    assert before["flops"]["tokenizer"] > 0
    captions = planned("stage=256", "data=cached", "data.text=captions")
    assert captions["flops"]["text_encoder"] == before["flops"]["text_encoder"]
    assert planned(*NANO, "data=cached")["flops"]["text_encoder"] > 0  # trained along, never cached


def test_local_windows_train_fewer_tokens() -> None:
    nano = [*NANO, "stage=1024", "text_encoder=word_transformer"]
    all_tokens, windows = (planned(*nano, f"train_tokens={name}") for name in ("all", "local_window"))
    assert windows["tokens"]["trained"] < 0.6 * all_tokens["tokens"]["trained"]
    assert windows["flops"]["forward"] < 0.5 * all_tokens["flops"]["forward"]


def test_a_text_encoder_that_is_trained_counts_as_trained() -> None:
    found = planned(*NANO)
    names = found["parameters"]
    assert names["trained"] == names["transformer"] + names["text_encoder"]
    assert found["memory"]["text_encoder"] == 0
    assert found["memory"]["averages"] == 4 * names["trained"]


def test_an_encoder_whose_files_are_not_here_is_said_to_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/nowhere")
    found = planned("stage=256", "text_encoder=t5")
    assert found["parameters"]["text_encoder"] is None
    assert any("isn't counted" in line for line in advice(found))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_are_what_an_optimizer_keeps(name: str) -> None:
    config = plain(compose("train", [*NANO, "model.depth=2", "model.width=32", f"optim={name}"]))
    transformer = instantiate(config["model"])
    optimizer, _ = instantiate(config["optim"]).build(transformer.named_parameters(prefix="transformer"), 10)
    assert isinstance(instantiate(config["optim"]), AdamW | MuonAdamW)
    for parameter in transformer.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if getattr(value, "ndim", 0) > 0]
    measured = sum(value.numel() * value.element_size() for value in tensors)
    assert moments(build(config), config["optim"], count(transformer)) == measured


@pytest.fixture
def models() -> Models:
    return build(plain(compose("train", NANO)))


def test_the_largest_batch_is_the_largest_that_fits(models: Models) -> None:
    config = plain(compose("train", NANO))
    memory = fixed(models, config, Spread("single", 1), half=True, cached_text=False)
    assert isinstance(memory, Memory)
    each, available = 10 * 2**20, 3 * GIB
    largest = largest_batch(memory, each, available)
    assert with_batch(memory, each, largest).total <= available < with_batch(memory, each, largest + 1).total
    assert largest_batch(memory, each, GIB) == 0


def test_images_and_devices_scale_the_cost() -> None:
    one, many = planned(*NANO, "images=1000"), planned(*NANO, "images=2000", "trainer=ddp", "devices=4")
    assert many["cost"]["gpu_hours"] == pytest.approx(2 * one["cost"]["gpu_hours"])
    assert many["cost"]["hours"] == pytest.approx(one["cost"]["hours"] / 2)
    assert many["batch"]["together"] == 4 * one["batch"]["together"]


def test_this_machine_can_be_planned_for() -> None:
    found = planned(*NANO, "gpu=cpu", "trainer=cpu")
    assert found["gpu"] == "cpu"
    assert found["batch"]["fits"]


def test_devices_are_spread_over_machines() -> None:
    config = composed(parse(["trainer=fsdp", "devices=64"]))
    assert (config["trainer"]["devices"], config["trainer"]["num_nodes"]) == (8, 8)
    config = composed(parse(["trainer=fsdp", "devices=64", "trainer.num_nodes=16"]))
    assert config["trainer"]["num_nodes"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpu=tpu"], "gpu is one of a100,.* or cpu, got 'tpu'"),
        (["devices=0"], "devices is a number"),
        (["mfu=40"], r"mfu is a share .*got '40'"),
        (["format=xml"], "table or json"),
        (["devces"], r"KEY=VALUE, got 'devces'; devices="),
        (["trainer=warp"], "there is no trainer=warp, but auto, cpu"),
        (["task=tokenizer"], "task=generator, got task=tokenizer"),
        (["batch_size=0"], "batch_size is a whole number of at least 1, got 0"),
        (["trainer.accumulate_grad_batches=0"], "accumulate_grad_batches is a whole number of at least 1"),
        (["trainer.max_steps=-1"], "max_steps is a whole number of at least 1"),
        (["activation_checkpointing=some"], "activation_checkpointing is none, full, or a number"),
        (["trainer=fsdp", "optim=adamw8bit"], "8-bit AdamW can't be sharded"),
        (["trainer=fsdp", "gpu=v100"], "no gradient scaler"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned(*arguments)


def test_tables_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    main([*NANO, "format=json"])
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["transformer"] > 1e6
    main(NANO)
    text = capsys.readouterr().out
    for name, value in found["parameters"].items():
        assert name in text
        assert number(value) in text
    main(["--help"])
    assert "python -m star.plan stage=1024" in capsys.readouterr().out


def test_a_batch_that_does_not_fit_is_answered_with_what_helps(big: dict[str, Any]) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    show(big, console)
    text = console.export_text()
    assert f"batch_size={big['batch']['largest']} does" in text
    assert "activation_checkpointing=full" in text
    assert set(DEVICES) >= {"a100", "a100_40", "h100", "h200"}


def test_numbers_for_people() -> None:
    assert [number(value) for value in (1.68e9, 340e6, 999.0, 1234, 4.27e13)] == [
        "1.68 B",
        "340 M",
        "999",
        "1.23 k",
        "42.7 T",
    ]


def test_what_is_chosen_already_is_not_advised() -> None:
    big = ["stage=1024", "model=d16", "text_encoder=word_transformer", "gpu=a100_40", "batch_size=4096"]
    options = ("activation_checkpointing=full", "train_tokens=local_window", "trainer=fsdp", "data=cached")
    (plain,) = advice(planned(*big, "trainer=ddp", "devices=8"))
    assert "does not fit" in plain
    assert all(option in plain for option in (*options, "optim=adamw8bit"))
    (chosen,) = advice(planned(*big, *options, "devices=8"))
    assert "does not fit" in chosen
    assert not any(option in chosen for option in (*options, "optim=adamw8bit"))
