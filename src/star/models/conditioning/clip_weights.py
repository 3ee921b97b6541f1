"""The weights of a CLIP text tower, from whatever file they come in, under open_clip's names."""

from __future__ import annotations

import pickle
import zipfile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pathlib import Path

_EMBEDDING = "token_embedding.weight"
_HUGGINGFACE_EMBEDDING = f"embeddings.{_EMBEDDING}"
# Hugging Face's names inside a block and open_clip's for the same; attention's in-projection is handled apart.
_BLOCK_NAMES = {
    "layer_norm1": "ln_1",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def read_text_tower(path: Path, *, layers: int) -> dict[str, Tensor]:
    """The first `layers` blocks, embeddings and final norm of the CLIP text tower in a file.

    Full CLIPs and text towers of open_clip, Hugging Face's `CLIPModel` and `CLIPTextModel`, and Stable Diffusion
    checkpoints are told apart by their names.

    Args:
        path: `.safetensors`, or a file of `torch.save` that holds nothing but tensors.
        layers: how many blocks are wanted.

    Raises:
        ValueError: when the file can't be read safely, or has no text tower of that depth.

    """
    tensors = _read_tensors(path)
    names = [name for name in tensors if name.endswith(_EMBEDDING)]
    if not names:
        raise ValueError(f"{path} has no CLIP text tower: no tensor is called ...{_EMBEDDING}")
    name = min(names, key=len)
    if name.endswith(_HUGGINGFACE_EMBEDDING):
        prefix = name.removesuffix(_HUGGINGFACE_EMBEDDING)
        blocks = f"{prefix}encoder.layers."
    else:
        prefix = name.removesuffix(_EMBEDDING)
        blocks = f"{prefix}transformer.resblocks."
    depth = 1 + max(
        (int(name.removeprefix(blocks).split(".")[0]) for name in tensors if name.startswith(blocks)), default=-1
    )
    if depth < layers:
        raise ValueError(f"{path} has a text tower of {depth} blocks, layers={layers} asks for more")
    if name.endswith(_HUGGINGFACE_EMBEDDING):
        try:
            return _from_huggingface(tensors, prefix, layers)
        except KeyError as error:
            raise ValueError(f"{path} has a damaged CLIP text tower: it lacks {error}") from error
    return _from_open_clip(tensors, prefix, layers)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor outside the image tower."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if _is_text(name)}  # noqa: SIM118 (no mapping)
        loaded = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is damaged, or not a plain file of tensors (TorchScript archives and pickles with code "
            f"are not opened): {str(error).splitlines()[0]}. Use the same weights as .safetensors."
        ) from error
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    return {name: tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor) and _is_text(name)}


def _is_text(name: str) -> bool:
    return "visual." not in name and "vision_model." not in name


def _from_open_clip(tensors: dict[str, Tensor], prefix: str, layers: int) -> dict[str, Tensor]:
    wanted = (_EMBEDDING, "positional_embedding", "ln_final.", *(f"transformer.resblocks.{i}." for i in range(layers)))
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in own.items() if name.startswith(wanted)}


def _from_huggingface(tensors: dict[str, Tensor], prefix: str, layers: int) -> dict[str, Tensor]:
    state = {
        _EMBEDDING: tensors[f"{prefix}embeddings.token_embedding.weight"],
        "positional_embedding": tensors[f"{prefix}embeddings.position_embedding.weight"],
    }
    for part in ("weight", "bias"):
        state[f"ln_final.{part}"] = tensors[f"{prefix}final_layer_norm.{part}"]
        for i in range(layers):
            theirs, ours = f"{prefix}encoder.layers.{i}.", f"transformer.resblocks.{i}."
            for name, renamed in _BLOCK_NAMES.items():
                state[f"{ours}{renamed}.{part}"] = tensors[f"{theirs}{name}.{part}"]
            projections = [tensors[f"{theirs}self_attn.{which}_proj.{part}"] for which in "qkv"]
            state[f"{ours}attn.in_proj_{part}"] = torch.cat(projections)
    return state
