"""Linear attention as a plugin of TensorRT-RTX and TensorRT; needs neither PyTorch nor Triton."""
