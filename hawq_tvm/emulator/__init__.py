"""An emulated GPU: runs the CUDA text that TVM generates, with a C++ compiler and no GPU."""
