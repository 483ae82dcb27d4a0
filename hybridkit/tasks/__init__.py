"""What is trained: data, model, loss, metric, cluster features."""
