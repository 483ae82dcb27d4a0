"""Projections of an update into a trust region."""
