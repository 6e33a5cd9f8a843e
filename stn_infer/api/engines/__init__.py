"""The public functions for TensorRT engines: build them, look at them, and keep them in a cache."""
