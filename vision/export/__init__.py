"""A run for programs without torch: ONNX and what checks it."""
