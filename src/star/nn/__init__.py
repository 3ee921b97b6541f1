"""Layers of the generator: attention, positions, masks, caches."""
