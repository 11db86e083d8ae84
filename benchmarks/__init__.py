"""What this project promises in figures, measured: `python -m mnist_sweep.benchmark [part ...]`.

Where two things are compared they take turns (A B A B ...) in one run on one machine, and their
medians are divided. Nothing is asserted: the table says what was met.
"""
