"""The light runtime: bundle, sessions, solvers and pipeline, with no PyTorch anywhere."""
