"""Every runtime against a float64 reference: grids in pixels, each sampler on its own, outputs."""

from stn_infer.verification.run import verify
from stn_infer.verification.verdict import BackendReport, Verification

__all__ = ["BackendReport", "Verification", "verify"]
