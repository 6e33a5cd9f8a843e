"""ONNX protobufs: reading, checking, traversing, naming, running. Independent of samplers."""
