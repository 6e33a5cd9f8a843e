"""TensorRT and TensorRT-RTX engines: built, cached with what they were built from, explained by a sidecar."""
