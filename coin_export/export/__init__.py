"""ONNX export and its numeric check."""
