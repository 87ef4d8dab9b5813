"""The door to PyTorch: parts of a model as modules, and modules as ONNX graphs."""
