"""The Inception network of the FID: Inception-v3 as TensorFlow published it in 2015, which averages without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# One convolution: name, output channels, kernel (height, width), stride, padding (height, width).
Conv = tuple[str, int, tuple[int, int], int, tuple[int, int]]


def _conv(name: str, width: int, kernel: int | tuple[int, int] = 1, stride: int = 1, padding: bool = True) -> Conv:
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    return name, width, sides, stride, (sides[0] // 2, sides[1] // 2) if padding else (0, 0)


class ConvNormReLU(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, width_in: int, conv: Conv) -> None:
        super().__init__()
        _, width, kernel, stride, padding = conv
        self.conv = nn.Conv2d(width_in, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C_in, H, W) to (B, C, H', W')."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Branches(nn.Module):
    """Parallel chains of convolutions whose results are concatenated; a pool of the input comes last.

    Args:
        width_in: channels of the input.
        chains: each a chain of convolutions; `forks` names pairs that both follow the chain and are concatenated.
        forks: index of a chain -> the two convolutions behind it.
        pool: `average` (without the padding, as TensorFlow does), `max`, or `shrink` (max with stride 2).
        pool_conv: the convolution behind the pool, if any.

    """

    def __init__(
        self,
        width_in: int,
        chains: Sequence[Sequence[Conv]],
        *,
        forks: Mapping[int, tuple[Conv, Conv]] | None = None,
        pool: str = "average",
        pool_conv: Conv | None = None,
    ) -> None:
        super().__init__()
        self.chains = [[conv[0] for conv in chain] for chain in chains]
        self.forks = {i: (a[0], b[0]) for i, (a, b) in (forks or {}).items()}
        self.pool, self.pool_conv = pool, pool_conv[0] if pool_conv else None
        self.width = width_in if pool_conv is None else pool_conv[1]
        for i, chain in enumerate(chains):
            width = width_in
            for conv in chain:
                self.add_module(conv[0], ConvNormReLU(width, conv))
                width = conv[1]
            ends = (forks or {}).get(i, ())
            for conv in ends:
                self.add_module(conv[0], ConvNormReLU(width, conv))
            self.width += sum(conv[1] for conv in ends) if ends else width
        if pool_conv is not None:
            self.add_module(pool_conv[0], ConvNormReLU(width_in, pool_conv))

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C_in, H, W) to (B, width, H', W')."""
        outputs = []
        for i, chain in enumerate(self.chains):
            y = x
            for name in chain:
                y = self.get_submodule(name)(y)
            ends = [self.get_submodule(name)(y) for name in self.forks.get(i, ())]
            outputs += ends or [y]
        pooled = self._pooled(x)
        outputs.append(pooled if self.pool_conv is None else self.get_submodule(self.pool_conv)(pooled))
        return torch.cat(outputs, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "average":
            return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return F.max_pool2d(x, 3, stride=2) if self.pool == "shrink" else F.max_pool2d(x, 3, stride=1, padding=1)


def _fives(width_in: int, pool_width: int) -> Branches:
    chains = (
        (_conv("branch1x1", 64),),
        (_conv("branch5x5_1", 48), _conv("branch5x5_2", 64, 5)),
        (_conv("branch3x3dbl_1", 64), _conv("branch3x3dbl_2", 96, 3), _conv("branch3x3dbl_3", 96, 3)),
    )
    return Branches(width_in, chains, pool_conv=_conv("branch_pool", pool_width))


def _sevens(width: int) -> Branches:
    flat, tall = (1, 7), (7, 1)
    chains = (
        (_conv("branch1x1", 192),),
        (_conv("branch7x7_1", width), _conv("branch7x7_2", width, flat), _conv("branch7x7_3", 192, tall)),
        (
            _conv("branch7x7dbl_1", width),
            _conv("branch7x7dbl_2", width, tall),
            _conv("branch7x7dbl_3", width, flat),
            _conv("branch7x7dbl_4", width, tall),
            _conv("branch7x7dbl_5", 192, flat),
        ),
    )
    return Branches(768, chains, pool_conv=_conv("branch_pool", 192))


def _threes(width_in: int, pool: str) -> Branches:
    chains = (
        (_conv("branch1x1", 320),),
        (_conv("branch3x3_1", 384),),
        (_conv("branch3x3dbl_1", 448), _conv("branch3x3dbl_2", 384, 3)),
    )
    forks = {
        1: (_conv("branch3x3_2a", 384, (1, 3)), _conv("branch3x3_2b", 384, (3, 1))),
        2: (_conv("branch3x3dbl_3a", 384, (1, 3)), _conv("branch3x3dbl_3b", 384, (3, 1))),
    }
    return Branches(width_in, chains, forks=forks, pool=pool, pool_conv=_conv("branch_pool", 192))


class Inception(nn.Module):
    """Features (B, 2048) of network inputs (B, 3, 299, 299) in about [-1, 1]; `fc` has TensorFlow's 1008 classes.

    The names of the tensors are those of the two published conversions, which hold the same numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormReLU(3, _conv("", 32, 3, stride=2, padding=False))
        self.Conv2d_2a_3x3 = ConvNormReLU(32, _conv("", 32, 3, padding=False))
        self.Conv2d_2b_3x3 = ConvNormReLU(32, _conv("", 64, 3))
        self.Conv2d_3b_1x1 = ConvNormReLU(64, _conv("", 80))
        self.Conv2d_4a_3x3 = ConvNormReLU(80, _conv("", 192, 3, padding=False))
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _fives(192, 32), _fives(256, 64), _fives(288, 64)
        doubled = (_conv("branch3x3dbl_1", 64), _conv("branch3x3dbl_2", 96, 3))
        chains = (
            (_conv("branch3x3", 384, 3, stride=2, padding=False),),
            (*doubled, _conv("branch3x3dbl_3", 96, 3, stride=2, padding=False)),
        )
        self.Mixed_6a = Branches(288, chains, pool="shrink")
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(_sevens, (128, 160, 160, 192))
        seven = (_conv("branch7x7x3_1", 192), _conv("branch7x7x3_2", 192, (1, 7)), _conv("branch7x7x3_3", 192, (7, 1)))
        turned = (
            (_conv("branch3x3_1", 192), _conv("branch3x3_2", 320, 3, stride=2, padding=False)),
            (*seven, _conv("branch7x7x3_4", 192, 3, stride=2, padding=False)),
        )
        self.Mixed_7a = Branches(768, turned, pool="shrink")
        # TensorFlow's last block takes the maximum where the one before averages
        self.Mixed_7b, self.Mixed_7c = _threes(1280, "average"), _threes(2048, "max")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features (B, 2048) of (B, 3, 299, 299)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = self.get_submodule(f"Mixed_{name}")(x)
        return x.mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Class logits (B, 1008) of features (B, 2048), without the bias, as the Inception Score wants them."""
        return F.linear(features, self.fc.weight)


def load_inception(state: Mapping[str, Tensor], *, source: str) -> Inception:
    """The network with the tensors of a published file.

    Raises:
        ValueError: when they don't fit.

    """
    network = Inception()
    expected = network.state_dict()
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    wrong = [name for name, value in expected.items() if name in state and state[name].shape != value.shape]
    missing = sorted(set(expected) - set(state) - counters)
    if missing or wrong:
        what = f"lacks {missing[0]!r} and {len(missing) - 1} more" if missing else f"has another shape of {wrong[0]!r}"
        raise ValueError(f"{source} is not an Inception file of the FID: it {what}")
    network.load_state_dict({name: state.get(name, value) for name, value in expected.items()})
    return network.eval().requires_grad_(False)
