"""Kernels of TVM, broken one place at a time: the emulator must notice every one, or what they compute is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from hawq_tvm.core.errors import EmulatorError
from hawq_tvm.emulator.launch import run

from .cuda_products import THREADS, Product, product_text
from .emulated import needs_compiler

pytestmark = needs_compiler

SHORT = Product(40, 64, 256)
TALL = Product(40, 64, 256, tall=True)
PRODUCTS = (
    SHORT,
    TALL,
    Product(33, 32, 128, a_signed=False),
    Product(40, 64, 512, bits=4),
    Product(7, 32, 512, bits=4, a_signed=False),
    Product(40, 64, 512, bits=4, tall=True),
    Product(64, 32, 512, bits=4, a_signed=False, tall=True),
)


def wrong_elements(
    product: Product, text: str, *, checked: bool = True, order: int = 0, shared: int | None = None
) -> int:
    """How many sums the kernel has wrong.

    Raises:
        EmulatorError: the emulator stopped it.
    """
    arguments, expected = product.arguments(seed=1)
    shared_bytes = product.shared_bytes if shared is None else shared
    run(
        text,
        "main_kernel",
        arguments,
        product.grid,
        (THREADS,),
        shared_bytes=shared_bytes,
        checked=checked,
        order=order,
    )
    return int((arguments["c"] != expected).sum())


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_the_kernels_are_right_in_every_order(product: Product, checked: bool) -> None:
    for order in range(4):
        assert wrong_elements(product, product_text(product), checked=checked, order=order) == 0


@dataclass(frozen=True)
class Mutation:
    """One place of a kernel's text changed.

    Attributes:
        product: whose kernel it is.
        pattern: regular expression of the place, within the kernel.
        replacement: of it; groups are written as for `re.sub`.
        occurrence: of the pattern, -1 the last.
        caught: what the emulator says; None where it can say nothing, and the sums are wrong.
    """

    product: Product
    pattern: str
    replacement: str
    caught: str | None
    occurrence: int = 0

    def text(self) -> str:
        text = product_text(self.product)
        body = text.rindex('extern "C"')
        if self.pattern.startswith("^"):  # of a helper, before the kernel
            changed, count = re.subn(self.pattern[1:], self.replacement, text[:body])
            assert count, "the text has no such place"
            return changed + text[body:]
        match = list(re.finditer(self.pattern, text[body:]))[self.occurrence]
        return text[: body + match.start()] + match.expand(self.replacement) + text[body + match.end() :]


BARRIER = r"tvm_builtin_cuda_cta_sync\(\);"
NO_BARRIER = "with no barrier between"
MMA = r"(tvm_builtin_ptx_mma\w+\(sums_ptr\[0\], sums_ptr\[1\], )"

MUTATIONS = {
    "the first barrier dropped": Mutation(SHORT, BARRIER, "", NO_BARRIER),
    "the loop's barrier dropped": Mutation(SHORT, BARRIER, "", NO_BARRIER, -1),
    "the loop's barrier dropped, with cp.async": Mutation(TALL, BARRIER, "", NO_BARRIER),
    "a barrier for one warp alone": Mutation(
        SHORT, r"int cse_v15 = ", r"if (warp == 0) tvm_builtin_cuda_cta_sync(); \g<0>", "diverge at a barrier"
    ),
    "a product for half a warp": Mutation(SHORT, MMA, r"if (((int)threadIdx.x) % 32 < 16) \1", "of one warp diverge"),
    "a wait that leaves one group more": Mutation(
        TALL, r"^cp\.async\.wait_group 1;", "cp.async.wait_group 2;", "a cp.async is still writing"
    ),
    "no wait": Mutation(TALL, r"tvm_builtin_ptx_cp_async_wait\w+\(\);", "", "a cp.async is still writing"),
    "a group not committed": Mutation(
        TALL, r"tvm_builtin_ptx_cp_async_commit\w+\(\);", "", "a cp.async is still writing", -1
    ),
    "one step too few": Mutation(SHORT, r"step < 4; \+\+step", "step < 3; ++step", None),
    "one step too many": Mutation(SHORT, r"step < 4; \+\+step", "step < 5; ++step", None),
    # Blocks run side by side: of a tile beyond both operands, whichever is read first is told.
    "a tile too many loaded": Mutation(SHORT, r"if \(step < 3\)", "if (step < 4)", "read of 16 bytes out of bounds at"),
    "a row too many read": Mutation(SHORT, r"< 40\)\)", "< 41))", "read of 16 bytes out of bounds at a__ptr["),
    "a copy from beyond the buffer": Mutation(
        TALL, r"a__ptr\[condval\]", "a__ptr[condval + 2560]", "read of 16 bytes out of bounds at a__ptr["
    ),
    "a row too many written": Mutation(
        SHORT, r"if \(\(\(int\)blockIdx\.y\) < 1\)", "if (true)", "write of 4 bytes out of bounds at c_ptr["
    ),
    "a vector that is not aligned": Mutation(SHORT, r"\*\(int4\*\)\(b__ptr \+ ", r"\g<0>1 + ", "misaligned access"),
    "a PTX vector that is not aligned": Mutation(SHORT, r"&\(a__ptr\[", r"\g<0>1 + ", "misaligned read of 16 bytes"),
    "a swizzle forgotten where rows are read": Mutation(SHORT, r"\(\(1 \^ ", "((1 | ", None, 1),
    "a swizzle of another chunk": Mutation(SHORT, r"\(\(0 \^ ", "((1 ^ ", None, 1),
    "two rows of a fragment swapped": Mutation(SHORT, MMA + r"of_a_ptr\[0\]", r"\1of_a_ptr[1]", None),
    "two registers of a fragment swapped": Mutation(
        TALL, r"of_a_ptr\[1\], of_a_ptr\[2\](, of_a_ptr\[3\], of_b)", r"of_a_ptr[2], of_a_ptr[1]\1", None
    ),
    "a register that was never written": Mutation(SHORT, r"sums_ptr\[3\] = \(uint\)0;", "", None),
    "an index beyond the registers": Mutation(
        SHORT, r"sums_ptr\[15\] = ", "sums_ptr[16] = ", "an index outside of an array"
    ),
    "two arrays that overlap": Mutation(
        SHORT, r"\+ 512\)\) = staged_b_ptr\[0\]", "+ 260)) = staged_b_ptr[0]", "race: it writes"
    ),
    "signs mistaken": Mutation(SHORT, r"^s32\.s8\.s8\.s32", "s32.u8.s8.s32", None),
    "two blocks that write the same": Mutation(
        SHORT, r"(c_ptr\[\(+\(int\)blockIdx\.y\) \* )2048", r"\g<1>0", "race: it writes c_ptr"
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_mutation_is_caught(name: str) -> None:
    mutation = MUTATIONS[name]
    if mutation.caught is None:
        assert wrong_elements(mutation.product, mutation.text()) > 0
        return
    with pytest.raises(EmulatorError, match=re.escape(mutation.caught)):
        wrong_elements(mutation.product, mutation.text())


def test_shared_memory_that_is_too_small_is_noticed() -> None:
    with pytest.raises(EmulatorError, match="shared memory"):
        wrong_elements(SHORT, product_text(SHORT), shared=SHORT.shared_bytes - 16)


@pytest.mark.parametrize("name", ["the first barrier dropped", "the loop's barrier dropped"])
def test_without_checks_some_order_shows_a_race(name: str) -> None:
    text = MUTATIONS[name].text()
    assert max(wrong_elements(SHORT, text, checked=False, order=order) for order in range(6)) > 0


@pytest.mark.parametrize(
    "name",
    ["a vector that is not aligned", "a PTX vector that is not aligned", "an index beyond the registers",
     "a row too many written", "a product for half a warp", "a barrier for one warp alone"],
)  # fmt: skip
def test_without_checks_these_are_caught_too(name: str) -> None:
    with pytest.raises(EmulatorError):
        wrong_elements(MUTATIONS[name].product, MUTATIONS[name].text(), checked=False)
