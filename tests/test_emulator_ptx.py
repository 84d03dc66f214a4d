"""PTX instructions by themselves: fragments as NVIDIA's manual lays them out, against plain arithmetic."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.core.errors import EmulatorError
from hawq_tvm.emulator.launch import CompiledKernel, load_kernel
from hawq_tvm.emulator.ptx import closing, split_at, translate_assembly

from .emulated import cuda, needs_compiler

pytestmark = needs_compiler

LANES = 32


@dataclass(frozen=True)
class Form:
    """A form of mma.sync: PTX ISA, "Matrix Fragments for mma.m8n8k16", "m8n8k32", "m16n8k16", "m16n8k32", "m16n8k64".

    Which element each register field holds is written here as those sections write it, for a thread with
    groupID = laneid >> 2 and threadID_in_group = laneid % 4.
    """

    rows: int
    depth: int
    bits: int

    @property
    def per_register(self) -> int:
        return 32 // self.bits

    def a(self, group: int, thread: int, i: int) -> tuple[int, int]:
        """(row, column) of A's element a_i."""
        e = self.per_register
        if self.rows == 8:
            return group, thread * e + i
        upper = i // e % 2 == 0  # "groupID for 0 <= i < e || 2e <= i < 3e, groupID + 8 otherwise"
        return group if upper else group + 8, thread * e + i % e + (4 * e if i >= 2 * e else 0)

    def b(self, group: int, thread: int, i: int) -> tuple[int, int]:
        """(row, column) of B's element b_i."""
        e = self.per_register
        return thread * e + i % e + (4 * e if i >= e else 0), group

    def c(self, group: int, thread: int, i: int) -> tuple[int, int]:
        """(row, column) of the accumulator's element c_i."""
        return group if i < 2 else group + 8, thread * 2 + i % 2

    @property
    def registers(self) -> tuple[int, int, int]:
        """How many registers a thread has of A, B and C."""
        return self.rows * self.depth * self.bits // 1024, 8 * self.depth * self.bits // 1024, self.rows // 4


FORMS = (Form(8, 16, 8), Form(16, 16, 8), Form(16, 32, 8), Form(8, 32, 4), Form(16, 32, 4), Form(16, 64, 4))


@cache
def mma_kernel(form: Form, a_sign: str, b_sign: str) -> CompiledKernel:
    a, b, c = form.registers
    bits = form.bits
    opcode = f"mma.sync.aligned.m{form.rows}n8k{form.depth}.row.col.s32.{a_sign}{bits}.{b_sign}{bits}.s32"
    numbers = iter(range(c + a + b + c))
    places = ", ".join("{" + ", ".join(f"%{next(numbers)}" for _ in range(n)) + "}" for n in (c, a, b, c))
    outputs = ", ".join(f'"=r"(d[{i}])' for i in range(c))
    inputs = ", ".join(
        f'"r"({name}_ptr[threadIdx.x * {n} + {i}])' for name, n in (("a", a), ("b", b), ("c", c)) for i in range(n)
    )
    body = f'uint d[{c}]; asm volatile("{opcode} {places};" : {outputs} : {inputs});'
    body += f"for (int i = 0; i < {c}; ++i) d_ptr[threadIdx.x * {c} + i] = d[i];"
    return load_kernel(cuda("uint* a_ptr, uint* b_ptr, uint* c_ptr, uint* d_ptr", body), "kernel")


def registers(values: np.ndarray[Any, Any], place: Callable[..., tuple[int, int]], count: int, bits: int) -> Any:
    """A matrix in the registers of 32 threads, uint32 [32, count]."""
    per = 32 // bits
    words = np.zeros((LANES, count), np.uint64)
    for lane in range(LANES):
        for i in range(count * per):
            value = int(values[place(lane >> 2, lane % 4, i)]) & ((1 << bits) - 1)
            words[lane, i // per] |= np.uint64(value << (bits * (i % per)))
    return words.astype(np.uint32)


@pytest.mark.parametrize("signs", ["ss", "us", "su", "uu"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_mma_is_the_product_of_its_fragments(form: Form, signs: str) -> None:
    random = np.random.default_rng(form.depth)
    half = 1 << (form.bits - 1)
    a, b = (
        random.integers(-half if sign == "s" else 0, half if sign == "s" else 2 * half, shape)
        for sign, shape in zip(signs, ((form.rows, form.depth), (form.depth, 8)), strict=True)
    )
    c = random.integers(-(2**31), 2**31, (form.rows, 8))  # sums go past 32 bits, and wrap around
    counts = form.registers
    d = np.zeros((LANES, counts[2]), np.uint32)
    mma_kernel(form, *signs).run(
        {
            "a": registers(a, form.a, counts[0], form.bits),
            "b": registers(b, form.b, counts[1], form.bits),
            "c": registers(c, form.c, counts[2], 32),
            "d": d,
        },
        (1,),
        (LANES,),
    )
    assert np.array_equal(d, registers(a @ b + c, form.c, counts[2], 32))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_fragments_hold_every_element_once(form: Form) -> None:
    a, b, c = form.registers
    for place, count, shape in (
        (form.a, a * form.per_register, (form.rows, form.depth)),
        (form.b, b * form.per_register, (form.depth, 8)),
        (form.c, c, (form.rows, 8)),
    ):
        held = [place(lane >> 2, lane % 4, i) for lane in range(LANES) for i in range(count)]
        assert sorted(held) == sorted(np.ndindex(shape))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count: int, transposed: bool) -> None:
    """PTX ISA, "Warp-level matrix load instruction: ldmatrix": the table of fragments for .m8n8."""
    trans = ".trans" if transposed else ""
    numbers = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"=r"(d[{i}])' for i in range(count))
    body = f"""
  __shared__ alignas(128) unsigned short matrices[{count * 64}];
  for (int i = threadIdx.x; i < {count * 64}; i += 32) matrices[i] = m_ptr[i];
  __syncthreads();
  uint d[{count}];
  uint row = __cvta_generic_to_shared(&matrices[(threadIdx.x % {8 * count}) * 8]);
  asm volatile("ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{numbers}}}, [%{count}];"
               : {outputs} : "r"(row) : "memory");
  for (int i = 0; i < {count}; ++i) d_ptr[threadIdx.x * {count} + i] = d[i];"""
    matrices = np.arange(count * 64, dtype=np.uint16)
    d = np.zeros((LANES, count), np.uint32)
    load_kernel(cuda("unsigned short* m_ptr, uint* d_ptr", body), "kernel").run([matrices, d], (1,), (LANES,))
    expected = matrices.reshape(count, 8, 8)
    if transposed:
        expected = expected.transpose(0, 2, 1)
    pairs = np.ascontiguousarray(expected).reshape(count, LANES, 2).astype(np.uint32)  # thread l: row l / 4
    assert np.array_equal(d.T, pairs[:, :, 0] | pairs[:, :, 1] << 16)


# ---- arithmetic ------------------------------------------------------------------------------------------------------

WORDS = st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3)


def signed(word: int, bits: int = 32) -> int:
    word &= (1 << bits) - 1
    return word - (1 << bits) if word >> (bits - 1) else word


def prmt(a: int, b: int, selector: int) -> int:
    both = [a >> 8 * i & 255 for i in range(4)] + [b >> 8 * i & 255 for i in range(4)]
    result = 0
    for i in range(4):
        digit = selector >> 4 * i & 15
        byte = both[digit & 7]
        result |= (255 * (byte >> 7) if digit & 8 else byte) << 8 * i
    return result


def saturate(value: int, bits: int, is_signed: bool) -> int:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if is_signed else (0, (1 << bits) - 1)
    return min(max(value, low), high) & ((1 << bits) - 1)


def pack_saturated(a: int, b: int, c: int, bits: int, is_signed: bool) -> int:
    halves = saturate(signed(a), bits, is_signed) << bits | saturate(signed(b), bits, is_signed)
    return (c << 2 * bits | halves) & 0xFFFFFFFF


def dot(a: int, b: int, c: int, a_signed: bool, b_signed: bool) -> int:
    def byte(word: int, i: int, is_signed: bool) -> int:
        return signed(word >> 8 * i, 8) if is_signed else word >> 8 * i & 255

    return c + sum(byte(a, i, a_signed) * byte(b, i, b_signed) for i in range(4))


def extract(a: int, b: int, c: int, is_signed: bool) -> int:
    """PTX ISA, bfe, as its pseudocode has it."""
    position, length = b & 255, c & 255
    sign = 0 if not is_signed or length == 0 else a >> min(position + length - 1, 31) & 1
    bits = [a >> position + i & 1 if i < length and position + i <= 31 else sign for i in range(32)]
    return sum(bit << i for i, bit in enumerate(bits))


ARITHMETIC: dict[str, Callable[[int, int, int], int]] = {
    "prmt.b32 %0, %1, %2, %3": prmt,
    "lop3.b32 %0, %1, %2, %3, 0xCA": lambda a, b, c: a & b | ~a & c,
    "shf.l.wrap.b32 %0, %1, %2, %3": lambda a, b, c: (b << 32 | a) << (c & 31) >> 32,
    "shf.l.clamp.b32 %0, %1, %2, %3": lambda a, b, c: (b << 32 | a) << min(c, 32) >> 32,
    "shf.r.wrap.b32 %0, %1, %2, %3": lambda a, b, c: (b << 32 | a) >> (c & 31),
    "shf.r.clamp.b32 %0, %1, %2, %3": lambda a, b, c: (b << 32 | a) >> min(c, 32),
    "bfe.u32 %0, %1, %2, %3": lambda a, b, c: extract(a, b, c, False),
    "bfe.s32 %0, %1, %2, %3": lambda a, b, c: extract(a, b, c, True),
    "mul.lo.s32 %0, %1, %2": lambda a, b, c: a * b,
    "mul.hi.s32 %0, %1, %2": lambda a, b, c: signed(a) * signed(b) >> 32,
    "mul.hi.u32 %0, %1, %2": lambda a, b, c: a * b >> 32,
    "mad.hi.s32 %0, %1, %2, %3": lambda a, b, c: (signed(a) * signed(b) >> 32) + c,
    "mad.lo.u32 %0, %1, %2, %3": lambda a, b, c: a * b + c,
    "add.s32 %0, %1, %2": lambda a, b, c: a + b,
    "sub.u32 %0, %1, %2": lambda a, b, c: a - b,
    "min.s32 %0, %1, %2": lambda a, b, c: min(signed(a), signed(b)),
    "max.u32 %0, %1, %2": lambda a, b, c: max(a, b),
    "dp4a.s32.s32 %0, %1, %2, %3": lambda a, b, c: dot(a, b, c, True, True),
    "dp4a.u32.s32 %0, %1, %2, %3": lambda a, b, c: dot(a, b, c, False, True),
    "cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3": lambda a, b, c: pack_saturated(a, b, c, 8, True),
    "cvt.pack.sat.u8.s32.b32 %0, %1, %2, %3": lambda a, b, c: pack_saturated(a, b, c, 8, False),
    "cvt.pack.sat.s4.s32.b32 %0, %1, %2, %3": lambda a, b, c: pack_saturated(a, b, c, 4, True),
    "{ .reg .pred p; setp.lt.s32 p, %1, %2; selp.b32 %0, %1, %3, p; }": lambda a, b, c: (
        a if signed(a) < signed(b) else c
    ),
    "{ .reg .pred p; setp.ne.b32 p, %1, 0; mov.b32 %0, %2; @!p mov.b32 %0, %3; }": lambda a, b, c: b if a else c,
}


@cache
def arithmetic_kernel() -> CompiledKernel:
    """Every instruction of the table in one kernel: words in, a result of each out."""
    lines = []
    for i, code in enumerate(ARITHMETIC):
        operands = max(int(number) for number in re.findall(r"%(\d)", code))
        inputs = ", ".join(f'"r"(x_ptr[{j}])' for j in range(operands))
        semicolon = "" if code.endswith("}") else ";"
        lines.append(f'{{ uint d; asm volatile("{code}{semicolon}" : "=r"(d) : {inputs}); y_ptr[{i}] = d; }}')
    return load_kernel(cuda("uint* x_ptr, uint* y_ptr", "\n".join(lines)), "kernel")


@settings(max_examples=60)
@given(WORDS)
def test_arithmetic(words: list[int]) -> None:
    results = np.zeros(len(ARITHMETIC), np.uint32)
    arithmetic_kernel().run([np.array(words, np.uint32), results], (1,), (1,))
    expected = [function(*words) & 0xFFFFFFFF for function in ARITHMETIC.values()]
    assert dict(zip(ARITHMETIC, results.tolist(), strict=True)) == dict(zip(ARITHMETIC, expected, strict=True))


def test_conversions_round_as_they_say_and_saturate() -> None:
    codes = ["cvt.rni.s32.f32", "cvt.rmi.s32.f32", "cvt.rzi.s32.f32"]
    body = "\n".join(
        f'{{ int d; asm("{code} %0, %1;" : "=r"(d) : "f"(x_ptr[threadIdx.x])); y_ptr[threadIdx.x * 3 + {i}] = d; }}'
        for i, code in enumerate(codes)
    )
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.7, 3e9, -3e9, np.nan], np.float32)
    y = np.zeros((len(x), 3), np.int32)
    load_kernel(cuda("float* x_ptr, int* y_ptr", body), "kernel").run([x, y], (1,), (len(x),))
    top, bottom = 2**31 - 1, -(2**31)
    assert y.T.tolist() == [
        [0, 2, 2, 0, -2, -3, top, bottom, 0],
        [0, 1, 2, -1, -2, -3, top, bottom, 0],
        [0, 1, 2, 0, -1, -2, top, bottom, 0],
    ]


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_wide_products(dtype: type[Any]) -> None:
    sign, c_type = ("s", "long long") if dtype == np.int32 else ("u", "unsigned long long")
    asm = f'asm("mul.wide.{sign}32 %0, %1, %2;" : "=l"(y_ptr[i]) : "r"(x_ptr[i]), "r"(x_ptr[8 + i]));'
    x = np.random.default_rng(0).integers(np.iinfo(dtype).min, np.iinfo(dtype).max, 16, dtype, endpoint=True)
    y = np.zeros(8, np.int64 if sign == "s" else np.uint64)
    text = cuda(f"{'int' if sign == 's' else 'uint'}* x_ptr, {c_type}* y_ptr", f"int i = threadIdx.x; {asm}")
    load_kernel(text, "kernel").run([x, y], (1,), (8,))
    assert y.tolist() == [a * b for a, b in zip(x[:8].tolist(), x[8:].tolist(), strict=True)]


def test_floats_are_rounded_once() -> None:
    """To nearest, ties to even; 1 + 2^-12 squared has 24 bits behind its point, one more than a float holds."""
    body = """
  asm("fma.rn.f32 %0, %1, %1, %2;" : "=f"(y_ptr[0]) : "f"(x_ptr[0]), "f"(x_ptr[1]));
  asm("cvt.rn.f32.s32 %0, %1;" : "=f"(y_ptr[1]) : "r"((1 << 24) + 1));
  asm("cvt.rn.f32.s32 %0, %1;" : "=f"(y_ptr[2]) : "r"(-(1 << 24) - 3));"""
    x, y = np.array([1 + 2**-12, -1 - 2**-11], np.float32), np.zeros(3, np.float32)
    load_kernel(cuda("float* x_ptr, float* y_ptr", body), "kernel").run([x, y], (1,), (1,))
    assert y.tolist() == [2**-24, 2**24, -(2**24) - 4]


# ---- waits and meetings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waits", "arrived"),
    [
        ("cp.async.wait_all;", True),
        ("cp.async.commit_group; cp.async.wait_all;", True),
        ("cp.async.commit_group; cp.async.wait_group 0;", True),
        ("cp.async.commit_group; cp.async.wait_group 1;", False),
        ("cp.async.wait_group 0;", False),
        ("cp.async.commit_group;", False),
    ],
)
def test_a_copy_has_arrived_after_a_wait_that_covers_it(waits: str, arrived: bool) -> None:
    body = f"""
  __shared__ alignas(16) int staged[128];
  uint to = __cvta_generic_to_shared(&staged[threadIdx.x * 4]);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(to), "l"(x_ptr + threadIdx.x * 4) : "memory");
  asm volatile("{waits}" : : : "memory");
  for (int i = 0; i < 4; ++i) y_ptr[threadIdx.x * 4 + i] = staged[threadIdx.x * 4 + i];"""
    kernel = load_kernel(cuda("int* x_ptr, int* y_ptr", body), "kernel")
    x, y = np.arange(128, dtype=np.int32), np.zeros(128, np.int32)
    if not arrived:
        with pytest.raises(EmulatorError, match="a cp.async is still writing"):
            kernel.run([x, y], (1,), (LANES,))
        return
    kernel.run([x, y], (1,), (LANES,))
    assert np.array_equal(x, y)


@pytest.mark.parametrize(
    ("barrier", "told"),
    [
        ("bar.warp.sync 0xffffffff;", None),
        ("bar.sync 0;", None),
        ("barrier.sync.aligned 0;", None),
        ("", "race: it writes shared values[16]"),
        ("bar.warp.sync 1;", "__syncwarp of a part of a warp"),
    ],
)
def test_barriers_order_the_threads_that_meet(barrier: str, told: str | None) -> None:
    body = f"""
  __shared__ int values[32];
  values[threadIdx.x] = threadIdx.x;
  asm volatile("{barrier}" : : : "memory");
  x_ptr[threadIdx.x] = values[31 - threadIdx.x];"""
    kernel = load_kernel(cuda("int* x_ptr", body), "kernel")
    x = np.zeros(LANES, np.int32)
    if told is not None:
        with pytest.raises(EmulatorError, match=re.escape(told)):
            kernel.run([x], (1,), (LANES,))
        return
    kernel.run([x], (1,), (LANES,))
    assert np.array_equal(x, np.arange(LANES)[::-1])


# ---- the translation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("wgmma.fence.sync.aligned;", "does not know the PTX instruction 'wgmma.fence.sync.aligned'"),
        ("mma.sync.aligned.m8n8k64.row.col.s32.s8.s8.s32 {%0, %0}, {%0}, {%0}, {%0, %0};", "no form"),
        ("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %0}, {%0, %0}, {%0}, {%0, %0};", "2, 2, 1 and 2"),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %0}, [%0];", "with 2 registers"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0}, {%0}, {%0}, {%0};", "does not know"),
        ("{ .reg .f16x2 p; mov.b32 %0, 1; }", "does not know"),
        ("ld.global.b32 %0, [%0+%0];", "does not know the PTX address '[%0+%0]'"),
    ],
)
def test_unknown_instructions_are_named(code: str, message: str) -> None:
    with pytest.raises(EmulatorError, match=re.escape(message)):
        translate_assembly(f'asm volatile("{code}" : "=r"(x));')


def test_assembly_in_comments_and_macros_is_left_alone() -> None:
    text = "// asm volatile( is not code\n#define __asm__ asm\n"
    assert translate_assembly(text) == text


def test_brackets_in_strings_and_comments_do_not_count() -> None:
    text = "(a \"(\" ')' /* ( */ b // (\n)"
    assert closing(text, 0) == len(text) - 1
    assert split_at('a:"b:c"(d:e):f', ":") == ["a", '"b:c"(d:e)', "f"]
    with pytest.raises(EmulatorError, match="without its partner"):
        closing("(a]", 0)
    with pytest.raises(EmulatorError, match="without its partner"):
        closing("(a", 0)
