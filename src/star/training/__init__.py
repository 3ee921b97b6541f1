"""LightningModules: they move batches and know no science."""
