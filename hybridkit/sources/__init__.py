"""What a text opens: a run, a packed model, weights, a module, an ONNX file, or what a plugin knows."""
