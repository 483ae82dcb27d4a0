"""Quantizers, fake-quantised layers, bit allocation, conversion to packed weights."""
