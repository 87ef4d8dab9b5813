"""The PyTorch model every other part is judged against: presets, loading, nano and its training."""
