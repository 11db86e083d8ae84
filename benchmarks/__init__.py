"""Measure the cost of training and sweeps, and the quality of a search.

    python -m benchmarks [part ...]

Comparisons alternate between the two sides (A B A B ...) in one process on one machine, and divide
their medians. A missed target is printed, not an error.
"""
