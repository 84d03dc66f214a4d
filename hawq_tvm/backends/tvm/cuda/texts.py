"""The CUDA text of a library's kernels, in one file beside it: to be read, and to be run where there is no GPU.

Each kernel's text, exactly as it was compiled, follows a line that says which one it is, how it is launched and which
image in the library was made of it. Standard library alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class KernelText:
    """One kernel.

    Attributes:
        name: its symbol, an ``extern "C" __global__`` function of the text.
        image: SHA-256 of the image in the library that was made of the text: the bytes that ``cuModuleLoadData`` gets.
        grid: blocks in x, y and z.
        block: threads of a block in x, y and z.
        dynamic_shared_bytes: shared memory of a block beyond what the text declares.
        text: CUDA C++.
    """

    name: str
    image: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared_bytes: int
    text: str

    @property
    def sha256(self) -> str:
        """Of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


_TITLE = re.compile(
    r"^// ==== kernel (\S+) grid (\d+),(\d+),(\d+) block (\d+),(\d+),(\d+) dynamic shared (\d+) image ([0-9a-f]{64})\n",
    re.MULTILINE,
)


def format_texts(kernels: Iterable[KernelText]) -> str:
    """All kernels as one file holds them."""
    parts = []
    for kernel in kernels:
        grid, block = ",".join(map(str, kernel.grid)), ",".join(map(str, kernel.block))
        parts.append(
            f"// ==== kernel {kernel.name} grid {grid} block {block} dynamic shared {kernel.dynamic_shared_bytes} "
            f"image {kernel.image}\n{kernel.text}\n"
        )
    return "".join(parts)


def parse_texts(data: str) -> list[KernelText]:
    """The inverse of `format_texts`."""
    titles = list(_TITLE.finditer(data))
    ends = [*(title.start() for title in titles[1:]), len(data)]
    found = []
    for title, end in zip(titles, ends[: len(titles)], strict=True):
        name, *numbers, image = title.groups()
        gx, gy, gz, bx, by, bz, shared = map(int, numbers)
        text = data[title.end() : end].removesuffix("\n")
        found.append(KernelText(name, image, (gx, gy, gz), (bx, by, bz), shared, text))
    return found
