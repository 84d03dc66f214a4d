"""The heart: the numeric contract, the two graphs, the tables everything reads. Numpy alone."""
