"""The compiler's stages, one file each; `hawq_tvm.pipeline` says in which order they run."""
