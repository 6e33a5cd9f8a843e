"""Batched inference over many inputs, written in shards so that an interrupted job can be resumed."""
