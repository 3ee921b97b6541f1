"""From shards of captioned images to batches, and data sets that are generated."""
