"""What is measured of a network: equality, accuracy, costs, latency."""
