"""Triton kernels, the custom ONNX operator and the TensorRT plugins."""
