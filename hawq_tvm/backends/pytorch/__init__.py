"""Both graphs as PyTorch modules."""
