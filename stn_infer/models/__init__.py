"""The networks by name, and the trained models that are shipped. Importing this needs no torch."""

from stn_infer.models.catalog import SHIPPED, Results, ShippedModel, shipped
from stn_infer.models.registry import NETWORKS, Network, create

__all__ = ["NETWORKS", "SHIPPED", "Network", "Results", "ShippedModel", "create", "shipped"]
