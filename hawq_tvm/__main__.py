"""``python -m hawq_tvm``."""

from hawq_tvm.cli.app import run_main

run_main()
