"""Engines of TensorRT-RTX and TensorRT, built from the graphs of a bundle; no GPU is needed for TensorRT-RTX."""
