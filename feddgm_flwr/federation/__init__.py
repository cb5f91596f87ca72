"""Flower's side: wire format, screening, the keeping of a round, baselines.

The only package, beside the two apps, that imports Flower.
"""
