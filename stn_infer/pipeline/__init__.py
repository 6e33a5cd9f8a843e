"""Batched inference over many inputs: read, run and written, in shards that survive an interruption."""
