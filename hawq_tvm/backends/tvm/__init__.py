"""The integer graph as a compiled library; `runtime` needs numpy and the TVM runtime alone."""
