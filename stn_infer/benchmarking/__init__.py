"""Latency and throughput that can be trusted: verified first, in interleaved rounds, with raw samples kept."""
