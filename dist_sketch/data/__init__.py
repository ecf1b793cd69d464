"""From image files to batches: recipe, packed shards, loader."""
