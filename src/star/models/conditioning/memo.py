"""What a frozen encoder said about a caption, kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from torch import Tensor


@dataclass(frozen=True)
class Features:
    """One caption's features, padding left out.

    Attributes:
        pooled: (D,) float32.
        context: (n, D_text) float32, one row per valid token.

    """

    pooled: Tensor
    context: Tensor

    def cpu(self) -> Features:
        """A copy in main memory that keeps no larger tensor alive."""
        return Features(self.pooled.to("cpu", copy=True), self.context.to("cpu", copy=True))


class FeatureMemo:
    """The features of the captions used last, `limit` of them at most; a key is a caption and how it was encoded."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a memo keeps at least one caption, got memo_limit={limit}; set memoize=false for none")
        self.limit = limit
        self._features: OrderedDict[Hashable, Features] = OrderedDict()

    def __len__(self) -> int:
        """How many captions are known."""
        return len(self._features)

    def get(self, key: Hashable) -> Features | None:
        """The features of a caption, None when it isn't known (any more)."""
        features = self._features.get(key)
        if features is not None:
            self._features.move_to_end(key)
        return features

    def put(self, key: Hashable, features: Features) -> None:
        """Remember a caption; the one that was not asked for longest goes when there are too many."""
        self._features[key] = features
        self._features.move_to_end(key)
        if len(self._features) > self.limit:
            self._features.popitem(last=False)
