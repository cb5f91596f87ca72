"""Pretraining of our own prior on public shapes: glyphs of fonts, or a folder of images.

Needs matplotlib and scipy; nothing that runs in a federation imports it.
"""
