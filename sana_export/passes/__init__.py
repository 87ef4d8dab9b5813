"""Edits of ONNX graphs, one a module; each is a function of the model that returns how many places it changed."""
