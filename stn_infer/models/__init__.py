"""The networks by name, and the shipped trained models. Importing this package does not import torch."""

from stn_infer.models.catalog import SHIPPED, Results, ShippedModel, shipped
from stn_infer.models.registry import NETWORKS, Network, create

__all__ = ["NETWORKS", "SHIPPED", "Network", "Results", "ShippedModel", "create", "shipped"]
