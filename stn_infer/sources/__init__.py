"""Where a model comes from: networks by name, recipes, checkpoints, users' own code; all become a PyTorch module."""

from stn_infer.sources.load import LoadedModel, load_source

__all__ = ["LoadedModel", "load_source"]
