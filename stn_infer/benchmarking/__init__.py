"""Latency and throughput that can be trusted: verified first, interleaved, with raw samples kept."""

from stn_infer.benchmarking.result import BenchResult, Measurement
from stn_infer.benchmarking.run import bench
from stn_infer.benchmarking.timing import Plan
from stn_infer.benchmarking.variants import VARIANTS

__all__ = ["VARIANTS", "BenchResult", "Measurement", "Plan", "bench"]
