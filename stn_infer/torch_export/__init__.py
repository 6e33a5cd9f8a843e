"""PyTorch module to plain ONNX to the portable file, unverified."""
