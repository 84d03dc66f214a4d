"""The tiles in software: what the instructions do, and what they refuse with a sentence."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest

from .soft_tiles import library, needs_vectors, shared_object

pytestmark = needs_vectors

START = """
import ctypes, sys
import numpy as np

tiles = ctypes.CDLL(sys.argv[1])
def configuration(**changed):
    words = np.zeros(64, np.uint8)
    words[0], words[16:32:2], words[48:56] = 1, 64, 16
    for name, value in changed.items():
        words[int(name[1:])] = value
    return words.ctypes.data_as(ctypes.c_void_p)
data = np.arange(1024, dtype=np.uint8)
at = data.ctypes.data_as(ctypes.c_void_p)
row = ctypes.c_int64(64)
"""


def said(program: str) -> tuple[int, str]:
    """How a program ends that uses the tiles, and its last words."""
    result = subprocess.run(
        [sys.executable, "-c", START + dedent(program), str(shared_object())],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = result.stderr.strip().splitlines()
    return result.returncode, lines[-1] if lines else ""


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("tiles.soft_tilezero(0)", "no configuration is loaded"),
        ("tiles.soft_ldtilecfg(configuration()); tiles.soft_tilerelease(); tiles.soft_tilezero(0)", "no configuration"),
        ("tiles.soft_tilerelease()", "released that were not configured"),
        (
            "tiles.soft_ldtilecfg(configuration()); tiles.soft_ldtilecfg(configuration())",
            "over one that was not released",
        ),
        ("tiles.soft_ldtilecfg(configuration(b0=2))", "palette 2"),
        ("tiles.soft_ldtilecfg(configuration(b1=3))", "start row 3"),
        ("tiles.soft_ldtilecfg(configuration(b9=1))", "reserved byte 9"),
        ("tiles.soft_ldtilecfg(configuration(b40=1))", "reserved byte 40"),
        ("tiles.soft_ldtilecfg(configuration(b18=65))", "tile 1 of 16 rows of 65 bytes"),
        ("tiles.soft_ldtilecfg(configuration(b50=17))", "tile 2 of 17 rows"),
        ("tiles.soft_ldtilecfg(configuration()); tiles.soft_tilezero(8)", "tile 8 is not configured"),
        ("tiles.soft_ldtilecfg(configuration(b51=0)); tiles.soft_tileloadd64(3, at, row)", "tile 3 is not configured"),
        ("tiles.soft_ldtilecfg(configuration()); tiles.soft_tdpbusd(0, 0, 1)", "tdpbusd 0, 0, 1 needs three tiles"),
        ("tiles.soft_ldtilecfg(configuration(b48=7)); tiles.soft_tdpbusd(0, 1, 2)", "tdpbusd of 16 x 64 bytes"),
        ("tiles.soft_ldtilecfg(configuration(b18=32)); tiles.soft_tdpbusd(0, 1, 2)", "tdpbusd of 16 x 32 bytes"),
        ("tiles.soft_grant(0); tiles.soft_ldtilecfg(configuration())", "no permission"),
    ],
)
def test_what_would_be_a_fault_ends_the_process_with_a_sentence(program: str, message: str) -> None:
    status, last = said(program)
    assert status < 0
    assert last.startswith("soft tiles: ")
    assert message in last


def test_tiles_are_as_large_as_they_were_configured_and_begin_as_zeros() -> None:
    """Tile 1 has 7 rows of 12 bytes; tile 0 is stored after it was released and configured anew."""
    status, last = said("""
        tiles.soft_ldtilecfg(configuration(b18=12, b49=7))
        tiles.soft_tileloadd64(1, at, row)
        out = np.full((16, 64), 77, np.uint8)
        tiles.soft_tilestored64(1, out.ctypes.data_as(ctypes.c_void_p), row)
        assert (out[:7, :12] == data.reshape(16, 64)[:7, :12]).all()
        assert (out[7:] == 77).all() and (out[:, 12:] == 77).all()
        tiles.soft_tilerelease()
        tiles.soft_ldtilecfg(configuration())
        tiles.soft_tilestored64(0, out.ctypes.data_as(ctypes.c_void_p), row)
        assert (out == 0).all()
    """)
    assert (status, last) == (0, "")


def test_products_are_those_of_unsigned_by_signed_bytes_and_wrap() -> None:
    status, last = said("""
        rng = np.random.default_rng(0)
        left = rng.integers(0, 256, (16, 64)).astype(np.uint8)
        right = rng.integers(-128, 128, (64, 16)).astype(np.int8)
        left[0], right[:, 0] = 255, -128
        packed = np.ascontiguousarray(right.reshape(16, 4, 16).transpose(0, 2, 1))
        total = np.full((16, 16), -(2**31), np.int32)
        pointer = lambda array: array.ctypes.data_as(ctypes.c_void_p)
        tiles.soft_ldtilecfg(configuration())
        tiles.soft_tileloadd64(0, pointer(total), row)
        tiles.soft_tileloadd64(1, pointer(left), row)
        tiles.soft_tileloadd64(2, pointer(packed), row)
        tiles.soft_tdpbusd(0, 1, 2)
        tiles.soft_tilestored64(0, pointer(total), row)
        exact = left.astype(np.int64) @ right.astype(np.int64) - 2**31
        assert (total == exact.astype(np.int32)).all() and exact.min() < -(2**31)
        assert tiles.soft_products() == 1
    """)
    assert (status, last) == (0, "")


def test_rows_may_be_one_row_sixteen_times() -> None:
    """A stride of zero is how sums start as the bias."""
    status, last = said("""
        out = np.zeros((16, 64), np.uint8)
        tiles.soft_ldtilecfg(configuration())
        tiles.soft_tileloadd64(4, at, ctypes.c_int64(0))
        tiles.soft_tilestored64(4, out.ctypes.data_as(ctypes.c_void_p), row)
        assert (out == data[:64]).all()
    """)
    assert (status, last) == (0, "")


def test_permission_is_answered_and_counted() -> None:
    before = library().soft_asked()
    answers = []
    for granted in (0, 1):
        library().soft_grant(granted)
        answers.append(library().soft_permission())
    assert answers[0] != 0
    assert answers[1] == 0
    assert library().soft_asked() == before + 2
