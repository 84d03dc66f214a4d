"""GPU kernels of a library: TVM's CUDA text, compiled for each architecture on a machine that need not have a GPU."""
