"""Sampling presets as the page offers them: names, sliders and the decoders they stand for."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from star.checkpoints.presets import merge_preset
from star.sampling.confidence import WithConfidence
from star.sampling.decoder import NO_REFINER, ScaleWiseDecoder, needs_refiner
from star.utils.cli import compose, conf_directory, plain
from star.utils.instantiate import instantiate_trusted

OWN = "checkpoint's own"
KNOBS = {
    "guidance": ("guidance", "scale"),
    "top_k": ("sampler", "top_k"),
    "top_p": ("sampler", "top_p"),
    "temperature": ("sampler", "temperature"),
}
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Presets:
    """All presets by name; the first is the checkpoint's.

    Attributes:
        configs: name -> configuration of a decoder.
        trusted: packages besides this one whose classes a preset may name.

    """

    configs: Mapping[str, Config]
    trusted: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """In the order in which they are offered."""
        return list(self.configs)

    def knobs(self, name: str) -> dict[str, float | None]:
        """The values of a preset that sliders move; None where it has no such value.

        Raises:
            ValueError: for an unknown preset.

        """
        config = self._config(name)
        return {knob: (config.get(part) or {}).get(value) for knob, (part, value) in KNOBS.items()}

    def decoder(self, own: ScaleWiseDecoder, name: str, knobs: Mapping[str, float | None]) -> ScaleWiseDecoder:
        """A copy of a decoder that draws by a preset with changed values, and notes how sure it is.

        Args:
            own: whose models draw.
            name: of the preset.
            knobs: what the sliders say; a value that the preset doesn't have, or None, changes nothing.

        Raises:
            ValueError: for an unknown preset, or values that can't be.

        """
        config = self._config(name)
        changes: dict[str, dict[str, Any]] = {}
        for knob, held in self.knobs(name).items():
            wanted = knobs.get(knob)
            if held is not None and wanted is not None:
                part, value = KNOBS[knob]
                changes.setdefault(part, {})[value] = type(held)(wanted)  # a slider's 64.0 is top_k 64
        settings = instantiate_trusted(
            {**merge_preset(config, changes), "_partial_": True}, packages=self.trusted
        ).keywords
        if needs_refiner(settings["sampler"]) and own.refiner is None:
            raise ValueError(f"{name}: {NO_REFINER}")
        decoder = copy.copy(own)
        for part in ("guidance", "constraint", "search", "cache_policy"):
            setattr(decoder, part, settings.get(part))
        decoder.best_of = None  # a page shows pictures growing, of which several candidates could show nothing
        search, policy = decoder.search is not None, decoder.cache_policy is not None
        decoder.speed.check(decoder.transformer, search=search, cache_policy=policy)
        decoder.sampler = WithConfidence(settings["sampler"])
        return decoder

    def _config(self, name: str) -> Config:
        if name not in self.configs:
            raise ValueError(f"there is no preset {name!r}: choose one of {', '.join(self.configs)}")
        return self.configs[name]


def collect(own: Config, *, refiner: bool, trusted: Sequence[str] = ()) -> Presets:
    """The checkpoint's own preset and all of conf/sampling that this model can draw with.

    Args:
        own: the preset that the pipeline was opened with.
        refiner: whether there is one, for presets that need it.
        trusted: see `Presets`.

    """
    configs: dict[str, Config] = {OWN: own}
    for path in sorted((conf_directory() / "sampling").glob("*.yaml")):
        config = plain(compose("sample", [f"sampling={path.stem}"]))["sampling"]
        if "_target_" in config and (refiner or "CausalDriven" not in config["sampler"]["_target_"]):
            configs[path.stem] = config
    return Presets(configs, trusted)
