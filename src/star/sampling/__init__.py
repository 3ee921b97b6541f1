"""From a condition to token maps."""
