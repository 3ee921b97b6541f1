"""STAR: scale-wise text-to-image transformers (arXiv 2406.10797), trained, evaluated and sampled."""

__version__ = "0.1.0"
