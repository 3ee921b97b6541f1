"""Keys and values of the scales that are already drawn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from star.nn.masks import ScaleMask
from star.schedule import ScaleSchedule
from star.types import CachePolicy


class KVCache:
    """Keys and values by layer, written scale by scale; the caller owns it, the transformer only appends.

    With no policy and an unlimited mask the buffers are allocated once, for the known total length. A mask that never
    looks far back, or a policy that shortens what stays, keeps one piece per scale instead.

    Args:
        schedule: the scales to come.
        mask: what a scale can see; scales out of sight of all later ones are dropped.
        policy: may shorten a finished scale's keys and values.

    """

    def __init__(
        self, schedule: ScaleSchedule, mask: ScaleMask | None = None, policy: CachePolicy | None = None
    ) -> None:
        self.schedule = schedule
        self.mask = mask or ScaleMask()
        self.policy = policy
        self._whole: dict[int, tuple[Tensor, Tensor]] = {}
        self._pieces: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
        self._text: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, scale: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values (R, heads, L_k, d) of `scale`.

        Returns:
            All that its queries `q` see: keys and values (R, heads, L_seen, d).

        """
        if self.policy is None and self.mask.order is None:
            return self._append_whole(layer, scale, k, v)
        pieces = self._pieces.setdefault(layer, {})
        for old in [old for old in pieces if old < self.mask.first_visible(scale)]:
            del pieces[old]
        seen = [*pieces.values(), (k, v)]
        keys, values = (torch.cat([piece[part] for piece in seen], 2) for part in (0, 1))
        pieces[scale] = (k, v) if self.policy is None else self.policy.keep(layer, scale, k, v)
        return keys, values

    def _append_whole(self, layer: int, scale: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._whole:
            shape = (*k.shape[:2], self.schedule.total, k.shape[3])
            self._whole[layer] = (k.new_empty(shape), v.new_empty(shape))
        keys, values = self._whole[layer]
        where = self.schedule.slice(scale)
        keys[:, :, where] = k
        values[:, :, where] = v
        return keys[:, :, : where.stop], values[:, :, : where.stop]

    def text(self, layer: int, compute: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Cross-attention's keys and values of a layer, computed at the first scale and kept."""
        if layer not in self._text:
            self._text[layer] = compute()
        return self._text[layer]

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows (R,) long of everything held."""

        def pick(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return pair[0][rows], pair[1][rows]

        self._whole = {layer: pick(pair) for layer, pair in self._whole.items()}
        self._text = {layer: pick(pair) for layer, pair in self._text.items()}
        self._pieces = {layer: {k: pick(pair) for k, pair in held.items()} for layer, held in self._pieces.items()}

    def tokens(self, layer: int = 0) -> int:
        """How many tokens of a layer take memory."""
        if layer in self._whole:
            return self._whole[layer][0].shape[2]
        return sum(keys.shape[2] for keys, _ in self._pieces.get(layer, {}).values())
