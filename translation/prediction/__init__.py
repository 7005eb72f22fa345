"""A run, an export or a checkpoint as a function of texts."""
