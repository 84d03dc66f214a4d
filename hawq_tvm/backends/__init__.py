"""The same integers in three other tools: PyTorch, ONNX and TVM."""
