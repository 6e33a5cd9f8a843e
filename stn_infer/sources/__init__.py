"""Load a PyTorch module from a network's name, a recipe (model config in TOML), a checkpoint or the user's code."""

from stn_infer.sources.load import LoadedModel, load_source

__all__ = ["LoadedModel", "load_source"]
