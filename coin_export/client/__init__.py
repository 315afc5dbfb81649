"""The client: discovery, policies, gathering and decoding; runs without torch, onnx or onnxruntime."""
