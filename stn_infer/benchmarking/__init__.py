"""Latency and throughput that can be trusted: verified first, in interleaved rounds, with raw samples kept."""

from stn_infer.benchmarking.method import QUICK, Method
from stn_infer.benchmarking.result import BenchResult, Case, Measurement, Request
from stn_infer.benchmarking.run import bench
from stn_infer.benchmarking.variants import VARIANTS

__all__ = ["QUICK", "VARIANTS", "BenchResult", "Case", "Measurement", "Method", "Request", "bench"]
