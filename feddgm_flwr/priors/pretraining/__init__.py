"""Pretraining of our own prior: on glyphs of fonts, or a folder of public images.

Needs matplotlib and scipy; nothing that runs in a federation imports it.
"""
