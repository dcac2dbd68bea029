"""Latency and accuracy of the policies on this machine; `python -m benchmarks` runs and records them."""
