"""The loop, checkpoints, metrics, distillation."""
