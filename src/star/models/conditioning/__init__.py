"""Text and class encoders: captions in, a `star.types.Condition` out."""
