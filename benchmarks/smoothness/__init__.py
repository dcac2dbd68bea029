"""How smooth every strategy is, and how well it tracks, at what latency. See docs/execution.md.

python -m benchmarks.smoothness                     # synthetic chunks, every strategy, 0 to 300 ms
python -m benchmarks.smoothness --episode           # the demo's episode and checkpoint as well (minutes)
"""
