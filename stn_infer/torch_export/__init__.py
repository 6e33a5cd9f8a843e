"""Exports a PyTorch module to plain ONNX and to the portable file, without verification."""
