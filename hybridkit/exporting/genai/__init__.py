"""Language models with a cache, as a folder for onnxruntime-genai and `hybridkit generate`."""
