"""A PyTorch network becomes a float graph."""
