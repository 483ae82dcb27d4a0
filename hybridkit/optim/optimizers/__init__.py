"""Recipes for base optimizers."""
