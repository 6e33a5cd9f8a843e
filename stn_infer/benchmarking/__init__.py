"""Latency and throughput that can be trusted: verified first, interleaved, with raw samples kept."""

from stn_infer.bench.result import BenchResult, Measurement
from stn_infer.bench.run import bench
from stn_infer.bench.timing import Plan
from stn_infer.bench.variants import VARIANTS

__all__ = ["VARIANTS", "BenchResult", "Measurement", "Plan", "bench"]
