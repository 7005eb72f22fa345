"""From files to batches: sections of a recipe, sources, shards, decoding, preprocessing, loaders."""
