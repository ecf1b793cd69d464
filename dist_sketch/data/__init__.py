"""From image files to batches: recipes, packed shards, the loader; also synthetic pairs."""
