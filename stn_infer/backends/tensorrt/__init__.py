"""TensorRT and TensorRT-RTX: building, caching and running engines."""
