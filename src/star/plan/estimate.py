"""The whole plan as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from star.models.flops import BACKWARD, decode_flops, encode_flops, sampling_flops, transformer_flops
from star.plan.memory import Spread, every, fixed, largest_batch, per_picture, with_batch
from star.plan.models import Models, count
from star.utils.devices import Device

HOUR = 3600
HALF = 2  # bytes of a number in a cache


def estimate(
    models: Models, config: Mapping[str, Any], spread: Spread, device: Device, *, mfu: float, images: int | None
) -> dict[str, Any]:
    """Everything by name: counts, floating-point operations, bytes, seconds.

    Args:
        models: of the configuration.
        config: resolved, of train.py.
        spread: over the devices.
        device: one of them.
        mfu: the share of its peak at which all of the training's products run.
        images: how many pictures to train on; None takes the configuration's steps.

    """
    trainer = config["trainer"]
    half = str(trainer["precision"]).startswith(("16", "bf16"))
    cached = str(config["data"]["_target_"]).endswith("CachedDataModule")
    cached_text = cached and config["data"].get("text") != "captions" and not models.text.trainable
    kind = "cpu" if device.name == "cpu" else "cuda"
    each = per_picture(models, config, half=half, device=kind, cached=cached)
    memory = fixed(models, config, spread, half=half, cached_text=cached_text)
    batch = config["batch_size"]
    whole = with_batch(memory, each, batch)
    flops = operations(models, recompute=every(config), cached=cached, cached_text=cached_text)
    together = batch * spread.devices * trainer["accumulate_grad_batches"]
    speed = mfu * device.peak(half=half) * 1e12 / flops["training_step"]  # pictures a second and device
    return {
        "parameters": parameters(models),
        "tokens": {"all": models.schedule.total, "trained": sum(models.counts), "text": models.text.max_tokens},
        "flops": flops,
        "memory": asdict(whole) | {"total": whole.total, "available": device.memory, "per_image": each},
        "sampling": sampling(models),
        "batch": {
            "per_device": batch,
            "fits": whole.total <= device.memory,
            "largest": largest_batch(memory, each, device.memory),
            "together": together,
        },
        "speed": {
            "mfu": mfu,
            "peak_tflops": device.peak(half=half),
            "images_per_second": speed * spread.devices,
            "step_seconds": together / (speed * spread.devices),
        },
        "cost": cost(images or trainer["max_steps"] * together, together, speed, spread.devices),
    }


def cost(images: int, together: int, speed: float, devices: int) -> dict[str, float]:
    """How long training on so many pictures takes, at `speed` pictures a second and device."""
    hours = images / speed / HOUR
    return {"images": images, "steps": -(-images // together), "gpu_hours": hours, "hours": hours / devices}


def parameters(models: Models) -> dict[str, int | None]:
    """How many of each part."""
    text = models.text
    transformer = count(models.transformer)
    return {
        "transformer": transformer,
        "text_encoder": text.parameters,
        "tokenizer": count(models.tokenizer),
        "trained": transformer + (text.parameters or 0) * text.trainable,
    }


def operations(models: Models, *, recompute: int, cached: bool, cached_text: bool) -> dict[str, int]:
    """Floating-point operations of one picture."""
    text = models.text
    tokens = text.max_tokens
    forward = transformer_flops(models.transformer, models.schedule, text_tokens=tokens, counts=models.counts)
    again = sum(number % recompute == 0 for number in range(1, models.transformer.depth + 1)) if recompute else 0
    parts = {
        "forward": forward,
        "backward": BACKWARD * forward,
        "recomputation": forward * again // models.transformer.depth,
        "tokenizer": 0 if cached else encode_flops(models.tokenizer, models.schedule),
        "text_encoder": 0 if cached_text else text.flops * (1 + BACKWARD * text.trainable),
    }
    return parts | {
        "training_step": sum(parts.values()),
        "sampling": sampling_flops(models.transformer, models.schedule, text_tokens=tokens),
        "decoding": decode_flops(models.tokenizer, models.schedule),
    }


def sampling(models: Models) -> dict[str, int]:
    """Bytes that drawing one picture takes in 16 bits, with guidance, besides weights."""
    transformer = models.transformer
    rows = 2 * transformer.depth * 2 * transformer.width * HALF  # both halves of guidance; keys and values
    has_text = getattr(transformer.blocks[0], "cross_attention", None) is not None
    return {
        "kv_cache": rows * models.schedule.total,
        "text_kv_cache": rows * models.text.max_tokens if has_text else 0,
        "weights": count(transformer) * HALF,
    }
