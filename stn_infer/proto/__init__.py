"""ONNX protobufs: read, checked, walked, named, run. Knows no sampler."""
