"""Convergence, quantisation, inference: measured."""
