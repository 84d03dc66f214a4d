"""Which tests judge which files."""

from __future__ import annotations

from dataclasses import dataclass

EXAMPLES = (
    "tests/test_house.py::test_examples_in_docstrings_are_true",
    "tests/test_house.py::test_the_arithmetic_document_runs",
)


@dataclass(frozen=True)
class Part:
    """Some files and their judges.

    Attributes:
        files: patterns of the files that are mutated.
        tests: test files, or single tests, that may notice. Those alone that stand near the files: a fault which only
            a whole run shows is one that no one finds.
    """

    files: tuple[str, ...]
    tests: tuple[str, ...]


PARTS = {
    "core": Part(
        ("hawq_tvm/core/*.py",),
        (
            "tests/test_dyadic.py",
            "tests/test_float32_rescale.py",
            "tests/test_ir.py",
            "tests/test_ops.py",
            "tests/test_interpreter.py",
            "tests/test_quantizer.py",
            "tests/test_float_ir.py",
            "tests/test_integerize_rules.py",
            "tests/test_integerize.py",
            "tests/test_storage.py",
            "tests/test_gpu.py",
            "tests/test_occupancy.py",
            "tests/test_specs.py",
            "tests/test_errors.py",
            "tests/test_strict_json.py",
            "tests/test_machine.py",
            "tests/test_options.py",
            "tests/test_reporter.py",
            "tests/test_float_io.py",
            "tests/test_float_graph_check.py",
            *EXAMPLES,
        ),
    ),
    "cuda": Part(
        ("hawq_tvm/backends/tvm/cuda/*.py",),
        (
            "tests/test_cuda_texts.py",
            "tests/test_cuda_fatbin.py",
            "tests/test_cuda_cubin.py",
            "tests/test_cuda_images.py",
            "tests/test_cuda_compiler.py",
            "tests/test_cuda_device.py",
            "tests/test_cuda_lowering.py",
            "tests/test_cuda_build.py",
            "tests/test_cuda_runs.py",
        ),
    ),
    "kernels": Part(
        ("kernels/*.py", "kernels/generic/*.py"),
        (
            "tests/test_kernels_alone.py",
            "tests/test_blocking.py",
            "tests/test_kernel_offers.py",
            *(
                f"tests/test_kernels.py::{name}"
                for name in (
                    "test_nibbles_unpack_to_what_was_packed",
                    "test_channel_blocks_hold_every_channel_once",
                    "test_blockings_are_sound",
                    "test_convolutions_stay_inside_their_buffers",
                    "test_threads_share_no_accumulators",
                    "test_four_bit_weights_take_the_packed_kernel_and_stay_packed",
                    "test_declines_are_sentences_and_their_table_is_the_error",
                    "test_operators_without_weights",
                    "test_what_a_compiler_could_fold_away_still_compiles",
                )
            ),
        ),
    ),
    "emulator": Part(
        ("hawq_tvm/emulator/*.py",),
        (
            "tests/test_emulator_text.py",
            "tests/test_emulator_ptx.py",
            "tests/test_emulator_launch.py",
            "tests/test_emulator_toolchain.py",
            "tests/test_emulator_session.py",
        ),
    ),
    "ilp": Part(("ilp/*.py",), ("tests/test_ilp.py",)),
    "backends": Part(
        ("hawq_tvm/backends/onnx/*.py", "hawq_tvm/backends/pytorch/*.py"),
        ("tests/test_onnx_io.py", "tests/test_integerize.py", "tests/test_capture.py"),
    ),
}
"""The parts that ``--part`` names."""
