"""Both graphs as ONNX files, and ONNX Runtime."""
