from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from star.metrics.assets import AssetFile
from star.metrics.clip import ClipModel, build, load, preprocess, read_state, tokenize
from star.metrics.clip_score import ClipScore, cosines

EVAL = Path(__file__).parents[1] / "golden" / "eval"
FACTS = json.loads((EVAL / "GOLD.json").read_text())["clip.npz"]
GOLDEN = np.load(EVAL / "clip.npz")
pytestmark = pytest.mark.filterwarnings("ignore")  # open_clip's own


@pytest.fixture
def model(tmp_path: Path) -> ClipModel:
    """The tiny CLIP of the golden file, with other weights."""
    network = build(FACTS["model"])
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            value.copy_(torch.from_numpy(rng.standard_normal(value.shape)) * 0.1)
    torch.save(network.state_dict(), tmp_path / "clip.pt")
    return ClipModel(FACTS["model"], AssetFile("clip_vit_l_14", tmp_path / "clip.pt", verify_hash=False))


def test_tokens_are_openais() -> None:
    assert np.array_equal(tokenize(FACTS["prompts"]).numpy(), GOLDEN["tokens"])


def test_preprocessing_is_openais() -> None:
    for name in (name for name in GOLDEN.files if name.startswith("in")):
        pixels = torch.from_numpy(GOLDEN[name]).permute(2, 0, 1)[None].float() / 255
        found = preprocess(pixels, 224)[0, :, ::16, ::16]
        np.testing.assert_allclose(found.numpy(), GOLDEN[f"pre{name[2:]}"], rtol=0, atol=FACTS["atol"])


def test_cosines_are_openais() -> None:
    found = cosines(*(torch.from_numpy(GOLDEN[f"{kind}_features"]) for kind in ("image", "text")))
    np.testing.assert_allclose(found.numpy(), GOLDEN["cos_openai"], rtol=0, atol=FACTS["atol"])


def test_square_pictures_are_prepared_alike_and_others_cropped_first() -> None:
    square, wide = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 96)
    assert torch.equal(preprocess(square, 32), preprocess(square, 32, "square"))
    assert torch.equal(preprocess(wide[..., 16:80], 32), preprocess(wide, 32, "square"))
    assert preprocess(wide, 32, "tensor", antialias=False).shape == (1, 3, 32, 32)


def test_score_is_the_mean_cosine_and_long_captions_are_cut(model: ClipModel) -> None:
    images = torch.rand(3, 3, 40, 50)
    prompts = [{"prompt": "a dog"}, {"prompt": "word " * 200}, {"prompt": ""}]
    metric = ClipScore(model=model, scale=100.0, group_size=2)
    metric.update(images[:2], prompts[:2])
    metric.update(images[2:], prompts[2:])
    texts = model.embed_texts([prompt["prompt"] for prompt in prompts], torch.device("cpu"))
    result = metric.compute()
    assert result["value"] == pytest.approx(100 * float((model.embed_images(images) * texts).sum(1).mean()))
    assert set(result["group_std"]) == {"all"}
    assert metric.deviations() == ["clip.pt is not the published file ViT-L-14.pt"]


def test_groups_are_the_same_however_ranks_share_the_pictures(model: ClipModel) -> None:
    images, prompts = torch.rand(6, 3, 40, 40), [{"prompt": "word " * i, "place": i} for i in range(6)]
    spreads = []
    for world in (1, 2):
        metric = ClipScore(model=model, group_size=2)
        for rank in range(world):
            metric.update(images[rank::world], prompts[rank::world])
        spreads.append(metric.compute()["group_std"]["all"])
    assert spreads[0] == pytest.approx(spreads[1], rel=1e-5)


def test_files_in_other_wrappings(model: ClipModel, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = read_state(tmp_path / "clip.pt")
    wrapped: dict[str, Any] = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(wrapped, tmp_path / "wrapped.pt")
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "clip.safetensors")
    for name in ("wrapped.pt", "clip.safetensors"):
        found = read_state(tmp_path / name)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"file doesn't fit the CLIP architecture: \d+ tensors missing"):
        load(build(FACTS["model"]), {}, source="file")
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="can't be read as CLIP weights"):
        read_state(tmp_path / "broken.pt")
    with pytest.raises(ValueError, match="open_clip knows no architecture 'ViT-0'"):
        build("ViT-0")
    with pytest.raises(ValueError, match="preprocessing is one of"):
        ClipModel(FACTS["model"], AssetFile("clip_vit_l_14"), preprocessing="none")
