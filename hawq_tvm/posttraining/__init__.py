"""What is decided between a trained network and its integers: ranges and roundings, by what they do to its results."""
