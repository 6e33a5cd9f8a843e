"""The reference that every result is compared with: a model or a file in float64, with every sampling grid recorded."""
