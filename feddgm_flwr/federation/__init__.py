"""Flower's side of the project: wire format, screening, the keeping of a round, baselines.

The only package, beside the two apps, that imports Flower.
"""
