"""Benchmarks that anyone can run on their own machine: ``taskmoe bench``.

Every figure is a ratio of two things timed in one run, in turns, after a warm-up: the median of the ratios of all
repetitions, with their quartiles. Nothing outside ``taskmoe bench`` imports this package.
"""
