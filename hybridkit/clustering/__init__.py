"""Clusterers, and the samplers that draw batches from clusters."""
