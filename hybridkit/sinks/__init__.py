"""Where metrics go besides the run's own log: TensorBoard, Weights & Biases, MLflow, plugins' sinks."""
