"""Hybrid optimisation: controllers, constraints, base optimizers and the optimizer that joins them."""
