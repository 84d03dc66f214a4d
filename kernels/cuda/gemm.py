"""A convolution as one product of matrices, and how that product is cut into tiles.

A row of A is what an output pixel sees, in the order in which it lies in memory: window taps outermost, then the stored
channels of a pixel, those that fill up included. B holds the weights in the same order. What is summed over is counted
in chunks of 16 bytes, the most that a thread moves at once:

    chunk q  =  elements q * E to (q + 1) * E of the row,   E = 16 values of 8 bits or 32 of 4

Where pixels are a chunk or more, a chunk lies within one tap; where they are a word, as the 3 channels of an image, a
chunk is of several taps. A linear layer is a convolution of images of one pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

from hawq_tvm.core.gpu import WARP_SIZE, MmaShape
from hawq_tvm.core.ir import TensorType, Window
from hawq_tvm.core.ops import Conv2d, WeightedOperator
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.cuda.storages import CHUNK_BITS, CHUNK_BYTES, WORD_BITS
from hawq_tvm.kernels.interface import Request


@dataclass(frozen=True)
class Gemm:
    """The product, and where its left operand lies.

    Attributes:
        batch: samples.
        size: rows and columns of the input.
        out_size: rows and columns of the result.
        window: of the convolution.
        channels: stored channels of the input.
        stored_bits: of an element in memory.
        bits: of an element that is multiplied: 4, or 8 where either operand has more or 4 are not native.
        signed: whether the input is.
        out_channels: of the result, none that fill up counted.
        shape: the instruction that multiplies.
        async_copy: whether the GPU copies to shared memory without registers.
        signed_alone: whether the instruction takes signed operands alone.
    """

    batch: int
    size: tuple[int, int]
    out_size: tuple[int, int]
    window: Window
    channels: int
    stored_bits: int
    bits: int
    signed: bool
    out_channels: int
    shape: MmaShape
    async_copy: bool
    signed_alone: bool

    @classmethod
    def of(cls, request: Request, reads: Storage, *, signed_alone: bool = False) -> Gemm:
        """The product of a convolution or a linear layer that reads its input as stored."""
        op, x = request.node.op, request.inputs[0]
        assert isinstance(op, WeightedOperator) and request.target.gpu is not None
        architecture = request.target.gpu.architecture
        bits = 4 if reads.bits == 4 and op.weight_bits <= 4 and architecture.native(4) else 8
        return cls(
            batch=request.batch,
            size=_size(x),
            out_size=_size(request.node.type),
            window=op.window if isinstance(op, Conv2d) else Window((1, 1)),
            channels=reads.channels(x),
            stored_bits=reads.bits,
            bits=bits,
            signed=x.dtype.signed,
            out_channels=op.out_channels,
            shape=architecture.mma[bits][0],
            async_copy=architecture.async_copy,
            signed_alone=signed_alone,
        )

    @property
    def rows(self) -> int:
        """Output pixels of the whole batch."""
        return self.batch * self.out_size[0] * self.out_size[1]

    @property
    def taps(self) -> int:
        return self.window.kernel[0] * self.window.kernel[1]

    @property
    def chunk_elements(self) -> int:
        return CHUNK_BITS // self.bits

    @property
    def chunks(self) -> int:
        """What is summed over; the last one may be filled up."""
        return -(-self.taps * self.channels // self.chunk_elements)

    @property
    def chunks_at_once(self) -> int:
        """Chunks that one instruction sums over: 1 or 2."""
        return self.shape.k * self.bits // CHUNK_BITS

    def steps(self, tile: Tile) -> int:
        """Steps of a tile over all chunks."""
        return -(-self.chunks // tile.k)

    def tiles(self, tile: Tile) -> tuple[int, int]:
        """How many tiles the result takes along the pixels and along the channels."""
        return -(-self.rows // tile.m), -(-self.out_channels // tile.n)

    @property
    def pixel_words(self) -> int:
        """Words of a pixel in memory."""
        return self.channels * self.stored_bits // WORD_BITS

    @property
    def taps_per_chunk(self) -> int:
        """More than 1 where a pixel is less than a chunk."""
        return max(1, self.chunk_elements // self.channels)

    @property
    def loaded_words(self) -> int:
        """Words of a chunk in memory: 4, or 2 where 4 bits become 8."""
        return self.chunk_elements * self.stored_bits // WORD_BITS

    @property
    def widens(self) -> bool:
        """Whether 4-bit values are multiplied as 8-bit ones."""
        return self.stored_bits < self.bits

    @property
    def copies(self) -> bool:
        """Whether operands are copied to shared memory asynchronously, as they are."""
        return self.async_copy and not self.widens and not self.added

    @property
    def added(self) -> int:
        """What is added to every value before it is multiplied, zeros of the padding included; the bias takes it back.

        8 to signed 4-bit values that are widened, since fields without a sign are; half of their range off unsigned
        values where an instruction takes signed ones alone.
        """
        if self.widens:
            return 8 if self.signed else 0
        return -(1 << (self.bits - 1)) if self.signed_alone and not self.signed else 0

    @property
    def flipped(self) -> int:
        """The bits of a stored word that `added` inverts: the highest one of each value, where it adds anything."""
        return 0 if not self.added else 0x88888888 if self.stored_bits == 4 else 0x80808080

    @property
    def a_type(self) -> str:
        """As PTX names it."""
        return f"{'s' if self.signed and not self.added else 'u'}{self.bits}"

    @property
    def b_type(self) -> str:
        return f"s{self.bits}"


def _size(type: TensorType) -> tuple[int, int]:
    return (type.shape[1], type.shape[2]) if len(type.shape) == 3 else (1, 1)


@dataclass(frozen=True)
class Tile:
    """What a block of threads computes, and what each of its warps does.

    Attributes:
        m: output pixels of a block.
        n: output channels of a block.
        k: chunks of a step, which are in shared memory at once.
        warps_m: warps side by side along the pixels.
        warps_n: warps side by side along the channels.
        slices: parts of a step that warps of their own sum over, added up in the end: more warps for few blocks.
    """

    m: int
    n: int
    k: int
    warps_m: int
    warps_n: int
    slices: int = 1

    def __post_init__(self) -> None:
        assert self.k in (2, 4, 8, 16) and self.slice_k >= 2, f"an instruction sums over up to two chunks: {self}"
        assert self.warp_m // 8 % self.slices == 0 or self.slices % (self.warp_m // 8) == 0, self
        assert self.warp_m % 32 == 0 and self.warps_m * self.warp_m == self.m, f"ldmatrix reads 32 rows: {self}"
        assert self.warp_n in (32, 64) and self.warps_n * self.warp_n == self.n, f"a lane stores words: {self}"
        for side in (self.m, self.n):
            assert side * self.k % self.threads == 0, f"every thread copies as many chunks: {self}"

    @property
    def warps(self) -> int:
        return self.warps_m * self.warps_n * self.slices

    @property
    def threads(self) -> int:
        return self.warps * WARP_SIZE

    def copied_chunks(self, rows: int) -> int:
        """Chunks of a step that one thread copies of an operand of so many rows."""
        return rows * self.k // self.threads

    @property
    def slice_k(self) -> int:
        """Chunks of a step that one warp sums over."""
        return self.k // self.slices

    @property
    def warp_m(self) -> int:
        return self.m // self.warps_m

    @property
    def warp_n(self) -> int:
        return self.n // self.warps_n

    @property
    def lane_channels(self) -> int:
        """Neighbouring output channels that one lane holds."""
        return self.warp_n // 4

    def __str__(self) -> str:
        warps = f"{self.warps_m}x{self.warps_n}" + (f"x{self.slices}" if self.slices > 1 else "")
        return f"{self.m}x{self.n}x{self.k * CHUNK_BYTES}B {warps} warps"
