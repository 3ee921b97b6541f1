from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from star.models.tokenizer.discriminator import DINODiscriminator, PatchDiscriminator

NAMES = ("norm1.weight", "norm1.bias", "attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.fc2.bias")


def dino_state(*, width: int = 64, depth: int = 3, patch: int = 8, side: int = 4) -> dict[str, Tensor]:
    """Random weights under DINO's published names."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, side**2 + 1, width), "norm.weight": (width,)}
    shapes |= {"norm.bias": (width,), "patch_embed.proj.weight": (width, 3, patch, patch)}
    shapes |= {"patch_embed.proj.bias": (width,)}
    for n in range(depth):
        shapes |= {f"blocks.{n}.{name}": (width,) for name in NAMES}
        shapes |= {f"blocks.{n}.attn.qkv.weight": (3 * width, width), f"blocks.{n}.attn.qkv.bias": (3 * width,)}
        shapes |= {f"blocks.{n}.attn.proj.weight": (width, width), f"blocks.{n}.mlp.fc1.weight": (2 * width, width)}
        shapes |= {f"blocks.{n}.mlp.fc1.bias": (2 * width,), f"blocks.{n}.mlp.fc2.weight": (width, 2 * width)}
    return {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "dino_deitsmall16_pretrain.pth"
    torch.save(dino_state() | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}, path)
    return path


@pytest.mark.parametrize("normalization", ["group", "spectral"])
def test_a_patch_discriminator_judges_squares_of_every_image_by_itself(normalization: str) -> None:
    critic = PatchDiscriminator(channels=8, num_layers=2, normalization=normalization, groups=4).eval()
    images = torch.randn(3, 3, 32, 24)
    logits = critic(images)
    assert logits.shape == (3, 6 * 4)
    torch.testing.assert_close(critic(images[1:2]), logits[1:2])


@pytest.mark.parametrize("normalization", ["group", "spectral"])
def test_it_learns_to_tell_two_kinds_apart(normalization: str) -> None:
    critic = PatchDiscriminator(channels=8, num_layers=1, normalization=normalization, groups=4)
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3)
    for _ in range(40):
        real, fake = torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8).cumsum(3) / 2
        loss = (1 - critic(real)).relu().mean() + (1 + critic(fake)).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.0


def test_images_too_small_for_the_patches_are_refused() -> None:
    critic = PatchDiscriminator(channels=8, groups=4)
    assert critic(torch.randn(1, 3, 24, 24)).shape == (1, 1)
    with pytest.raises(ValueError, match="24 pixels or more"):
        critic(torch.randn(1, 3, 23, 24))


@pytest.mark.parametrize("wrong", [{"normalization": "batch"}, {"num_layers": 0}])
def test_impossible_patch_discriminators_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="normalization"):
        PatchDiscriminator(channels=32, **wrong)


def test_only_the_heads_of_a_dino_discriminator_are_trained_and_saved(weights: Path) -> None:
    critic = DINODiscriminator(weights=weights, layers=(-1, 1, 2), resolution=32)
    assert all(name.startswith("heads.") for name in critic.state_dict())
    assert all(name.startswith("heads.") for name, _ in critic.named_parameters())
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    logits = critic(images)
    assert logits.shape == (2, 3 * 16)
    logits.sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in critic.backbone.network.parameters())


def test_features_are_those_of_a_plain_transformer_with_the_same_weights(weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    network = DINODiscriminator(weights=weights, layers=(0,), resolution=32).backbone.network
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = ((images + 1) / 2 - mean) / deviation
    x = nn.functional.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=8)
    x = torch.cat([state["cls_token"].expand(2, -1, -1), x.flatten(2).mT], 1) + state["pos_embed"]
    layer = nn.TransformerEncoderLayer(
        64, 1, 128, 0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    renamed = {
        "self_attn.in_proj_weight": "attn.qkv.weight",
        "self_attn.in_proj_bias": "attn.qkv.bias",
        "self_attn.out_proj.weight": "attn.proj.weight",
        "self_attn.out_proj.bias": "attn.proj.bias",
        "linear1.weight": "mlp.fc1.weight",
        "linear1.bias": "mlp.fc1.bias",
        "linear2.weight": "mlp.fc2.weight",
        "linear2.bias": "mlp.fc2.bias",
    }
    layer.load_state_dict({name: state[f"blocks.0.{renamed.get(name, name)}"] for name in layer.state_dict()})
    x = layer(x)
    expected = (x[:, 1:] + x[:, :1]).mT.unflatten(2, (4, 4))
    torch.testing.assert_close(network(images, (0,))[0], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("resolution", "positions"), [(32, 16), (None, 35), (48, 36)])
def test_images_are_resized_or_the_positions_are(weights: Path, resolution: int | None, positions: int) -> None:
    critic = DINODiscriminator(weights=weights, layers=(2,), resolution=resolution)
    assert critic(torch.randn(1, 3, 40, 56)).shape == (1, positions)


def test_missing_or_foreign_weights_are_refused(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dino_deitsmall16_pretrain\.pth from https://dl"):
        DINODiscriminator(weights=None)
    torch.save({"conv.weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="DINO"):
        DINODiscriminator(weights=tmp_path / "other.pth")
    state = torch.load(weights, weights_only=True)
    del state["blocks.1.norm2.bias"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"blocks\.1\.norm2\.bias"):
        DINODiscriminator(weights=tmp_path / "other.pth")
    with pytest.raises(ValueError, match="layers 0 to 2"):
        DINODiscriminator(weights=weights, layers=(0, 3))
