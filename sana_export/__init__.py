"""ONNX export, graph passes, engines, packing, reports and the command line."""
