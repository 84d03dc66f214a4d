"""``python -m hawq_tvm``."""

from hawq_tvm.cli import run_main

run_main()
