"""Every option of every group composes, and what it names can be built at toy size."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from star.sampling.speed import Speed
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate

CONF = Path(__file__).parents[1] / "conf"
TRAIN_GROUPS = (
    "task",
    "stage",
    "model",
    "tokenizer",
    "tokenizer_training",
    "refiner_training",
    "text_encoder",
    "position",
    "mask",
    "train_tokens",
    "optim",
    "data",
    "trainer",
    "logger",
    "callbacks",
    "experiment",
    "hparams_search",
    "debug",
)
TOY = [
    "model.depth=1",
    "model.width=32",
    "model.num_heads=2",
    "tokenizer.encoder.channels=32",
    "tokenizer.encoder.num_res_blocks=1",
    "tokenizer.quantizer.codebook_size=16",
]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(CONF))


def options(group: str) -> list[str]:
    folder = CONF / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


CASES = [(group, option) for group in TRAIN_GROUPS for option in options(group)]


def resolved(overrides: list[str]) -> dict[str, Any]:
    return plain(compose("train", ["paths.run_dir=somewhere", *overrides]))


@pytest.mark.parametrize(("group", "option"), CASES, ids=[f"{group}={option}" for group, option in CASES])
def test_every_option_composes_and_resolves(group: str, option: str) -> None:
    config = resolved([f"{group}={option}"])
    assert config["module"]["_target_"].startswith("star.training.")


@pytest.mark.parametrize("option", options("text_encoder"))
def test_a_generator_is_built_with_every_text_encoder(option: str) -> None:
    """Built, not loaded: frozen encoders read their weights when the first caption comes."""
    module = instantiate(resolved([*TOY, f"text_encoder={option}"])["module"])
    assert module.transformer.blocks[0].cross_attention is not None or option == "class_label"


@pytest.mark.parametrize("group", ["position", "mask", "train_tokens", "optim", "task"])
def test_every_other_part_of_a_module_is_built(group: str) -> None:
    for option in options(group):
        module = instantiate(resolved([*TOY, "text_encoder=word_transformer", f"{group}={option}"])["module"])
        assert any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("stage", options("stage"))
def test_what_is_trained_fits_every_stage(stage: str) -> None:
    for option in options("train_tokens"):
        config = resolved([f"stage={stage}", f"train_tokens={option}"])
        schedule = instantiate(config["schedule"])
        kept = instantiate(config["train_tokens"])(schedule, 1)
        assert (kept is None) == (option == "all")


@pytest.mark.parametrize("group", ["model", "tokenizer"])
def test_every_size_is_built_without_memory(group: str) -> None:
    for option in options(group):
        with torch.device("meta"):
            assert instantiate(resolved([f"{group}={option}"])[group]).state_dict()


def test_the_tokenizer_of_patches_looks_at_no_other_patch() -> None:
    tokenizer = instantiate(resolved(["tokenizer=patches"])["tokenizer"])
    images = torch.rand(1, 3, 24, 24)
    other = images.clone()
    other[..., 8:16, 8:16] = 0
    changed = (tokenizer.features(images) - tokenizer.features(other)).abs().sum(1)[0] > 1e-6
    assert changed.nonzero().tolist() == [[1, 1]]


def test_a_pyramid_is_trained_with_scale_dropout() -> None:
    words = ["task=tokenizer", "experiment=demo", "tokenizer=pyramid", "tokenizer_training.scale_dropout=null"]
    with pytest.raises(Exception, match="tokenizer_training.scale_dropout=") as refused:
        instantiate(resolved(words)["module"])
    setting = str(refused.value).split("set ")[1].split("'")  # as the message has it
    module = instantiate(resolved([*words, setting[0] + setting[1]])["module"])
    assert module.scale_dropout.probability == 0.5


@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
@pytest.mark.parametrize("option", options("sampling"))
def test_every_preset_is_built(name: str, option: str) -> None:
    config = compose(name, [f"sampling={option}"])
    preset = OmegaConf.to_container(config.sampling, resolve=True)
    assert isinstance(preset, dict)
    if "_target_" in preset:
        assert callable(instantiate(preset))
    else:
        assert option == "from_checkpoint"


@pytest.mark.parametrize("name", ["sample", "evaluate"])
@pytest.mark.parametrize("option", options("speed"))
def test_every_speed_is_built(name: str, option: str) -> None:
    assert isinstance(instantiate(plain(compose(name, [f"speed={option}"]))["speed"]), Speed)


@pytest.mark.parametrize("option", options("pretrained"))
def test_every_release_composes_and_resolves(option: str) -> None:
    config = plain(compose("sample", [f"pretrained={option}"]))
    assert config["pretrained"]["name"] == option
    assert config["model"]["num_levels"] == len(config["schedule"]["sizes"])
    with torch.device("meta"):
        parts = [instantiate(config[part]) for part in ("model", "tokenizer", "position", "schedule")]
    assert parts[1].factor * parts[3].sizes[-1][0] in (256, 512, 1024)


def test_groups_with_several_options_merge() -> None:
    assert set(resolved(["logger=[tensorboard,wandb]"])["logger"]) == {"csv", "tensorboard", "wandb"}
    assert set(resolved(["logger=csv"])["logger"]) == {"csv"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle=d30", "modle"),
        ("model=d31", "d31"),
        ("optim.lrr=1", "lrr"),
        ("batchsize=3", "batchsize"),
        ("stage=300", "300"),
    ],
)
def test_unknown_keys_and_options_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        compose("train", [override])
    assert message in f"{caught.value} {caught.value.__cause__}"


def test_the_stage_is_overruled_by_the_experiment_and_that_by_the_command_line() -> None:
    assert resolved(["stage=512"])["optim"]["lr"] == 5e-5
    assert resolved(["stage=512", "optim.lr=3"])["optim"]["lr"] == 3
    assert resolved(["stage=1024", "debug=overfit"])["trainer"]["max_steps"] == 200


def test_every_option_explains_itself() -> None:
    for path in CONF.rglob("*.yaml"):
        if "local" not in path.parts:
            assert any(
                line.startswith("# ") and "@package" not in line for line in path.read_text().splitlines()[:3]
            ), path


PUBLISHED = (CONF / "tokenizer_training" / "published.yaml").read_text().splitlines()
SWITCHES = [[word for word in shlex.split(line) if "=" in word] for line in PUBLISHED if line.startswith("#   ")]


@pytest.mark.parametrize("words", SWITCHES, ids=" ".join)
def test_losses_that_are_off_are_switched_on_as_their_file_says(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where weights are missing, the key that the error names is one that can be set."""
    monkeypatch.chdir(tmp_path)
    given = ["task=tokenizer", "stage=64", "tokenizer=nano", *words]
    if "weights:" not in words[0]:
        assert any(parameter.requires_grad for parameter in instantiate(resolved(given)["module"]).parameters())
        return
    with pytest.raises(FileNotFoundError) as missing:
        instantiate(resolved(given)["module"])
    found = re.search(r"set (\S+) to its path", str(missing.value))
    assert found is not None
    with pytest.raises(FileNotFoundError, match=r"elsewhere\.pth is missing"):
        instantiate(resolved([*given, f"{found[1]}=elsewhere.pth"])["module"])


@pytest.mark.parametrize("resolution", ["256", "[256,512]", "[512,256]"])
def test_pictures_are_asked_for_the_shorter_side_of_a_resolution(resolution: str) -> None:
    data = resolved(["data=laion", f"resolution={resolution}"])["data"]
    assert data["filters"]["short_side"] == {"min": 256}
