"""Running packed models: ONNX Runtime session, torch modules. Imports without torch."""
