"""The ways of running a model that a benchmark compares."""
