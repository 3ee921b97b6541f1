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

    With no policy and an unlimited mask the buffers are allocated once, for the known length. The last scale's keys,
    some 40 % of all, are looked at while its layer runs and never again: all layers share the memory for them. A mask
    that never looks far back, or a policy that shortens what stays, keeps one piece per scale instead.

    Args:
        schedule: the scales to come.
        mask: what a scale can see; scales out of sight of all later ones are dropped.
        policy: may shorten a finished scale's keys and values.
        num_layers: how many layers there will be, if that is known: their buffers are one piece of memory then, which
            goes back to the system as one.

    """

    def __init__(
        self,
        schedule: ScaleSchedule,
        mask: ScaleMask | None = None,
        policy: CachePolicy | None = None,
        *,
        num_layers: int = 0,
    ) -> None:
        self.schedule = schedule
        self.mask = mask or ScaleMask()
        self.policy = policy
        self.num_layers = num_layers
        self._whole: dict[int, tuple[Tensor, Tensor]] = {}
        self._pieces: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
        self._text: dict[int, tuple[Tensor, Tensor]] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    def append(self, layer: int, scale: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values (R, heads, L_k, d) of `scale`.

        Returns:
            All that its queries `q` see: keys and values (R, heads, L_seen, d). Those of the last scale hold until the
            next layer's turn.

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

    def room(self, layer: int, scale: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's buffers for keys and values, with the scales before in place, for whoever writes a scale himself.

        Args:
            layer: the layer.
            scale: what will be written.
            like: on the right device, of the right dtype and shape (R, heads, any length, d).

        Raises:
            ValueError: for a cache that drops keys or shortens them, and so has no place for all.

        """
        if self.policy is not None or self.mask.order is not None:
            raise ValueError("compiled steps need a cache that keeps everything: no cache policy, no Markov mask")
        if layer not in self._whole and layer < self.num_layers and not self._whole:
            shape = (self.num_layers, 2, *like.shape[:2], self.schedule.offsets[-2], like.shape[3])
            self._whole |= {n: (keys, values) for n, (keys, values) in enumerate(like.new_empty(shape))}
        if layer not in self._whole:
            self._whole[layer] = (self._buffer(like[:, :, :0]), self._buffer(like[:, :, :0]))
        keys, values = self._whole[layer]
        if scale + 1 < len(self.schedule):
            return keys, values
        if self._last is None or self._last[0].shape[0] != keys.shape[0]:
            shape = (*keys.shape[:2], self.schedule.total, keys.shape[3])
            self._last = keys.new_empty(shape), values.new_empty(shape)
        for place, before in zip(self._last, (keys, values), strict=True):
            place[:, :, : before.shape[2]] = before
        return self._last

    def _append_whole(self, layer: int, scale: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.room(layer, scale, k)
        where = self.schedule.slice(scale)
        keys[:, :, where] = k
        values[:, :, where] = v
        return keys[:, :, : where.stop], values[:, :, : where.stop]

    def text(self, layer: int, compute: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Cross-attention's keys and values of a layer, computed at the first scale and kept."""
        if layer not in self._text:
            self._text[layer] = compute()
        return self._text[layer]

    def adopt(self, other: KVCache) -> None:
        """Write into another cache's memory from now on, and take over its text."""
        self._whole, self._text = dict(other._whole), dict(other._text)

    def knows_text(self) -> bool:
        """Whether the text's keys and values are computed already."""
        return bool(self._text)

    def forget_text(self) -> None:
        """Have the text's keys and values computed again."""
        self._text.clear()

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows (R,) long of everything held."""
        self._change(lambda part: part[rows.to(part.device)])

    def first(self, rows: int) -> None:
        """Keep the first rows of everything held, without a copy."""
        self._change(lambda part: part[:rows])

    def park(self, tokens: int, place: torch.device | str = "cpu") -> None:
        """Move to another device, of the buffers only the first `tokens`: what is drawn so far."""
        self._whole = {layer: (k[:, :, :tokens], v[:, :, :tokens]) for layer, (k, v) in self._whole.items()}
        self._change(lambda part: part.to(place))

    def fetch(self, device: torch.device | str) -> None:
        """Come back from where `park` put it, each part right into its buffer: nothing is on the device twice."""
        for layer, (k, v) in self._whole.items():
            self._whole[layer] = self._buffer(k, device), self._buffer(v, device)
        self._change(lambda part: part.to(device))

    def _buffer(self, part: Tensor, device: torch.device | str | None = None) -> Tensor:
        """Room for all tokens but those of the last scale, filled as far as `part` goes."""
        whole = part.new_empty(*part.shape[:2], self.schedule.offsets[-2], part.shape[3], device=device)
        whole[:, :, : part.shape[2]] = part
        return whole

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        def both(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return change(pair[0]), change(pair[1])

        # layer by layer: no moment needs everything twice
        for held in (self._whole, self._text, *self._pieces.values()):
            for name, pair in held.items():
                held[name] = both(pair)

    def held(self) -> list[Tensor]:
        """Every tensor that takes memory."""
        pairs = [*self._whole.values(), *self._text.values(), *([self._last] if self._last else [])]
        return [part for pair in (*pairs, *(p for h in self._pieces.values() for p in h.values())) for part in pair]

    def clear(self) -> None:
        """Forget everything."""
        for held in (self._whole, self._text, self._pieces):
            held.clear()
        self._last = None

    def tokens(self, layer: int = 0) -> int:
        """How many tokens of a layer take memory."""
        if layer in self._whole:
            return self._whole[layer][0].shape[2]
        return sum(keys.shape[2] for keys, _ in self._pieces.get(layer, {}).values())
