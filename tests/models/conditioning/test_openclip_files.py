from __future__ import annotations

import json
from pathlib import Path

import pytest

from star.models.conditioning import openclip_files
from star.models.conditioning.openclip_files import (
    check_activation,
    check_tag,
    find_weights,
    is_path,
    load_tokenizer,
    model_config,
)


def test_known_models_are_described() -> None:
    text = model_config("ViT-H-14")["text_cfg"]
    assert (text["width"], text["layers"], text["context_length"]) == (1024, 24, 77)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ViT-H14", "near: .*ViT-H-14"),
        ("roberta-ViT-B-32", "HuggingFaceTextEncoder"),
        ("hf-hub:owner/name", "text_encoder.weights"),
    ],
)
def test_other_models_are_refused_with_advice(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model_config(name)


@pytest.mark.parametrize(
    ("name", "tag", "quick_gelu", "told"),
    [
        ("ViT-L-14", "openai", False, "name=ViT-L-14-quickgelu"),
        ("ViT-L-14-quickgelu", "openai", False, "trained with QuickGELU"),
        ("ViT-L-14", "laion2b_s32b_b82k", True, "trained with GELU"),
        ("ViT-L-14", "nonsense", False, "laion2b_s32b_b82k"),
    ],
)
def test_tags_that_do_not_fit_are_refused(name: str, tag: str, quick_gelu: bool, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_tag(name, tag, quick_gelu=quick_gelu)


def test_tags_that_fit_pass() -> None:
    check_tag("ViT-H-14", "laion2b_s32b_b79k", quick_gelu=False)
    check_tag("ViT-L-14-quickgelu", "openai", quick_gelu=True)


@pytest.mark.parametrize(("activation", "quick"), [("quick_gelu", False), ("gelu", True)])
def test_a_folder_trained_with_the_other_gelu_is_refused(activation: str, quick: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_act": activation}))
    check_activation("it", tmp_path / "model.safetensors", quick_gelu=not quick)
    with pytest.raises(ValueError, match=activation):
        check_activation("it", tmp_path / "model.safetensors", quick_gelu=quick)


def test_tags_and_paths_are_told_apart() -> None:
    assert not is_path("laion2b_s32b_b79k")
    assert all(is_path(path) for path in ("./openai", "weights.pt", "a/b", "model.safetensors"))


def test_a_folder_gives_the_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"open_clip_model.safetensors"):
        find_weights("ViT-H-14", f"{tmp_path}/")
    (tmp_path / "model.safetensors").touch()
    assert find_weights("ViT-H-14", f"{tmp_path}/") == tmp_path / "model.safetensors"


def test_a_missing_path_names_the_file_and_the_key() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/w.pt; set text_encoder.weights=PATH"):
        find_weights("ViT-H-14", "nowhere/w.pt")


def test_a_tag_is_looked_for_in_its_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(repository: str, names: tuple[str, ...], *, key: str) -> Path:
        asked.append((repository, names, key))
        return Path("found")

    monkeypatch.setattr(openclip_files, "fetch_file", fetch)
    assert find_weights("ViT-H-14", "laion2b_s32b_b79k") == Path("found")
    names = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    assert asked == [("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", names, "text_encoder.weights")]


def test_weights_with_nothing_but_an_address_say_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"url": "https://host/w.pt"})
    with pytest.raises(FileNotFoundError, match=r"https://host/w.pt.*text_encoder.weights=PATH"):
        find_weights("RN50", "yfcc15m")


def test_a_tokenizer_that_is_not_cached_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="hf download timm/ViT-B-16-SigLIP "):
        load_tokenizer("ViT-B-16-SigLIP", model_config("ViT-B-16-SigLIP")["text_cfg"])
