from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from star.models.conditioning.clip_weights import read_text_tower

WIDTH, LAYERS = 4, 3


def open_clip_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"token_embedding.weight": (10, WIDTH), "positional_embedding": (7, WIDTH), "text_projection": (WIDTH, 2)}
    shapes |= {f"ln_final.{part}": (WIDTH,) for part in ("weight", "bias")}
    for i in range(LAYERS):
        block = f"transformer.resblocks.{i}."
        shapes |= {f"{block}attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{block}attn.in_proj_bias": (3 * WIDTH,)}
        for name, out, into in (("attn.out_proj", 4, 4), ("mlp.c_fc", 16, 4), ("mlp.c_proj", 4, 16)):
            shapes |= {f"{block}{name}.weight": (out, into), f"{block}{name}.bias": (out,)}
        shapes |= {f"{block}{norm}.{part}": (WIDTH,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def huggingface_tensors() -> dict[str, Tensor]:
    """The same tower under Hugging Face's names."""
    theirs = {}
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for name, tensor in open_clip_tensors().items():
        renamed = name.replace("transformer.resblocks.", "encoder.layers.").replace(
            "attn.out_proj", "self_attn.out_proj"
        )
        renamed = renamed.replace("ln_final", "final_layer_norm").replace(
            "token_embedding", "embeddings.token_embedding"
        )
        renamed = renamed.replace("positional_embedding", "embeddings.position_embedding.weight")
        for ours, other in names.items():
            renamed = renamed.replace(ours, other)
        if "in_proj_" in renamed:
            for which, part in zip("qkv", tensor.chunk(3), strict=True):
                theirs[renamed.replace("attn.in_proj_", f"self_attn.{which}_proj.")] = part.clone()
        elif name != "text_projection":
            theirs[renamed] = tensor
    return theirs


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


IMAGE_TOWER = {
    "visual.transformer.resblocks.9.ln_1.weight": torch.zeros(1),
    "vision_model.encoder.layers.9.layer_norm1.weight": torch.zeros(1),
    "logit_scale": torch.zeros(()),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("tensors", "prefix"),
    [
        (open_clip_tensors, ""),
        (open_clip_tensors, "text."),
        (open_clip_tensors, "module."),
        (open_clip_tensors, "cond_stage_model.model."),
        (huggingface_tensors, ""),
        (huggingface_tensors, "text_model."),
    ],
)
def test_every_layout_gives_the_same_tower(tensors: object, prefix: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    stored = prefixed(tensors(), prefix) | IMAGE_TOWER  # type: ignore[operator]
    if suffix == ".pt":
        torch.save({"state_dict": stored, "epoch": 3}, file)
    else:
        save_file(stored, file)
    read = read_text_tower(file, layers=2)
    expected = {
        name: t for name, t in open_clip_tensors().items() if "resblocks.2." not in name and "text_proj" not in name
    }
    assert sorted(read) == sorted(expected)
    assert all(torch.equal(read[name], expected[name]) for name in expected)


def test_a_shallower_file_is_refused(tmp_path: Path) -> None:
    save_file(open_clip_tensors(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="3 blocks, layers=4"):
        read_text_tower(tmp_path / "w.safetensors", layers=4)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="no CLIP text tower"):
        read_text_tower(tmp_path / "w.safetensors", layers=1)


def test_a_tower_with_holes_is_refused(tmp_path: Path) -> None:
    tensors = huggingface_tensors()
    del tensors["encoder.layers.0.self_attn.k_proj.bias"]
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"k_proj.bias"):
        read_text_tower(tmp_path / "w.safetensors", layers=1)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("executed",))


@pytest.mark.parametrize("kind", ["pickle", "torch", "noise", "truncated"])
def test_code_and_damage_are_refused_unopened(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ("w.safetensors" if kind == "truncated" else "w.bin")
    if kind == "pickle":
        file.write_bytes(pickle.dumps(Malicious(), protocol=2))
    elif kind == "torch":
        torch.save({"token_embedding.weight": Malicious()}, file)
    elif kind == "noise":
        file.write_bytes(b"not a checkpoint")
    else:
        save_file(open_clip_tensors(), file)
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match="not a plain file of tensors"):
        read_text_tower(file, layers=1)
    assert not (tmp_path / "executed").exists()
