"""Class labels in the place of captions, for class-conditional models (VAR on ImageNet)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from star.models.conditioning.widths import check_widths
from star.types import Condition

if TYPE_CHECKING:
    from collections.abc import Sequence


class ClassLabelEncoder(nn.Module):
    """One trained vector a class, and one for no class: the pooled feature; there is no context.

    Captions are class numbers (`"207"` or 207); the empty caption is the null class of classifier-free guidance.

    Args:
        num_classes: how many classes there are.
        width: size of the pooled feature.
        pooled_width, context_width: `width` again, and None, as the rest of a configuration reads them.

    Raises:
        ValueError: for sizes below 1; when called, for what isn't the number of a class.

    """

    trainable = True
    batch_invariant = True  # a look-up is

    def __init__(
        self, num_classes: int, width: int, *, pooled_width: int | None = None, context_width: None = None
    ) -> None:
        super().__init__()
        if context_width is not None:
            raise ValueError(f"a class has no context: context_width must be null, got {context_width}")
        check_widths(width, pooled_width=pooled_width, context_width=None, owner="this encoder")
        if min(num_classes, width) < 1:
            raise ValueError(f"num_classes and width must be positive, got {num_classes} and {width}")
        self.num_classes = num_classes
        self.pooled_width = width
        self.context_width = None
        self.max_tokens = 1
        self.identity = f"class_label/{num_classes}/width{width}"
        self.embedding = nn.Embedding(num_classes + 1, width)
        nn.init.trunc_normal_(self.embedding.weight, std=(1 / (3 * width)) ** 0.5)

    @property
    def device(self) -> torch.device:
        """Where the encoder runs."""
        return self.embedding.weight.device

    def forward(self, captions: Sequence[str | int]) -> Condition:
        """Embed class numbers (B): pooled (B, width), no context."""
        if isinstance(captions, str) or len(captions) == 0:
            raise ValueError(f"an encoder takes a sequence of class numbers, got {captions!r}")
        rows = torch.tensor([self._row(caption) for caption in captions], device=self.device)
        return Condition(self.embedding(rows))

    def _row(self, caption: str | int) -> int:
        if isinstance(caption, str) and not caption.strip():
            return self.num_classes
        try:
            number = int(caption)
        except (TypeError, ValueError):
            raise ValueError(f"caption {caption!r} is not the number of a class; '' means no class") from None
        if not 0 <= number < self.num_classes:
            raise ValueError(f"class {number} is not in 0 ... {self.num_classes - 1}; '' means no class")
        return number
