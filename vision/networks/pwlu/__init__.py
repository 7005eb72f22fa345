"""The piecewise-linear unit: the layer, its operator and its loops for the processor."""
