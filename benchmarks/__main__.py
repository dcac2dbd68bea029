"""`python -m benchmarks` is `python -m benchmarks.bench_policy`."""

from benchmarks.bench_policy import main

main()
