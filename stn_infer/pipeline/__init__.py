"""Batched inference over many inputs: read, run and written, in shards that survive an interruption."""

from stn_infer.pipeline.inference import RunSummary, run

__all__ = ["RunSummary", "run"]
