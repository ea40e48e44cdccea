"""Benchmarks against peers: `make bench`, `make bench-quick`. One module a benchmark; both sides in one run."""
