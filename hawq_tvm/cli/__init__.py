"""The command line: `hawq-tvm VERB`."""
