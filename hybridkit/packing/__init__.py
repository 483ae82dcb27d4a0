"""Codecs and the packed model file. NumPy arrays only."""
