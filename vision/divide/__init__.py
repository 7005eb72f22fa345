"""One network into s smaller ones of the same total cost, and their ensemble."""
