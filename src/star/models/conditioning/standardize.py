"""Features with mean 0 and deviation 1 in every dimension, measured on a fixed list of captions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

# Everyday captions of several lengths: things, colours, counts, places, relations, styles. Changing one changes every
# model that was trained on standardised features.
CAPTIONS = (
    "",
    "a red circle above a blue square",
    "a green triangle to the left of a yellow star",
    "two small orange squares on a black background",
    "a large purple ring",
    "a white cross below a pink heart on a gray background",
    "three cyan diamonds and one brown circle",
    "a cat",
    "a brown dog running on the beach",
    "two children playing football in a park",
    "a photo of a city street at night, rain, neon lights",
    "an old man reading a newspaper on a wooden bench",
    "a portrait of a woman with long hair, oil painting",
    "a bowl of fruit on a kitchen table next to a glass of water",
    "mountains behind a lake at sunrise",
    "a yellow taxi in front of a red brick building",
    "a black and white drawing of a ship in a storm",
    "a smiling face with sunglasses",
    "the flag of a country with three horizontal stripes",
    "a plate with two eggs, bacon and toast",
    "a bird sitting on a branch",
    "a small house with a blue door under a large tree",
    "an astronaut riding a horse on the moon",
    "a close-up of a flower with water drops",
    "four books stacked on top of each other",
    "a train arriving at an empty station",
    "a man holding an umbrella to the right of a parked car",
    "a logo of a fox, flat vector art, simple shapes",
    "a cup of coffee",
    "a snowy forest with a wooden cabin, smoke rising from its chimney",
    "people walking across a bridge over a river",
    "a red apple and a green pear",
    "a robot made of glass, studio lighting, highly detailed",
    "a clock showing ten past two on a white wall",
    "a guitar leaning against a sofa",
    "a field of sunflowers under a clear sky",
    "an airplane above the clouds",
    "a bicycle with one flat tire",
    "a slice of pizza on a paper plate",
    "a castle on a hill, watercolor",
    "a fish below a boat",
    "five balloons of different colors",
    "a lamp on a desk beside an open laptop",
    "a waterfall in a tropical jungle",
    "a heart with an arrow",
    "a person climbing a steep rock wall",
    "a basket full of kittens",
    "a purple teapot between two white cups",
)

_SMALLEST_DEVIATION = 1e-4


def captions_from(file: Path) -> tuple[str, ...]:
    """The lines of a text file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it isn't UTF-8 text.

    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing; set text_encoder.standardize to a text file of captions, one a line, or to true"
        )
    try:
        return tuple(file.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error


def captions_digest(captions: Sequence[str]) -> str:
    """Eight hex digits that name a list of captions."""
    return hashlib.sha256("\n".join(captions).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Standardizer:
    """Per-dimension statistics of an encoder's hidden states and pooled features, all (width,) float32.

    In a sentence encoder a few dimensions are far from zero in every caption, while what tells a red circle above a
    blue square from a blue circle above a red square is small; after this every dimension counts alike.
    """

    hidden_mean: Tensor
    hidden_deviation: Tensor
    pooled_mean: Tensor
    pooled_deviation: Tensor

    @classmethod
    def measure(cls, encode: Callable[[str], tuple[Tensor, Tensor]], captions: Iterable[str]) -> Standardizer:
        """Statistics over captions, each encoded on its own: pooled (1, width) and hidden states (1, n, width).

        The hidden states' are over all tokens of all captions.

        Raises:
            ValueError: for fewer than two captions.

        """
        pairs = [encode(caption) for caption in captions]
        if len(pairs) < 2:
            raise ValueError(f"statistics need at least two captions, got {len(pairs)}")
        hidden = torch.cat([hidden[0] for _, hidden in pairs]).double()  # (tokens, width)
        pooled = torch.cat([pooled for pooled, _ in pairs]).double()  # (captions, width)
        statistics = (hidden.mean(0), hidden.std(0), pooled.mean(0), pooled.std(0))
        mean, deviation, pooled_mean, pooled_deviation = (value.float() for value in statistics)
        return cls(
            mean, deviation.clamp_min(_SMALLEST_DEVIATION), pooled_mean, pooled_deviation.clamp_min(_SMALLEST_DEVIATION)
        )

    def __call__(self, pooled: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Standardise pooled (N, width) and hidden states (N, n, width)."""
        return (pooled - self.pooled_mean) / self.pooled_deviation, (hidden - self.hidden_mean) / self.hidden_deviation

    def to(self, device: torch.device) -> Standardizer:
        """The same statistics elsewhere."""
        parts = (self.hidden_mean, self.hidden_deviation, self.pooled_mean, self.pooled_deviation)
        return Standardizer(*(part.to(device) for part in parts))
