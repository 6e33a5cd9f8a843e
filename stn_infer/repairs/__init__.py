"""What is fixed in an ONNX file beside the fusion, and the comparison that every rewrite must pass."""
