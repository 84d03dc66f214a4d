// What one core can do at most: INT8 products in registers alone, reading memory, and handing a number over to another.
// Called by ceilings.py, which takes the time. Each function of products returns the operations that it has done, two a
// product and its sum.

#include <stdint.h>

#if defined(__x86_64__)

#define TIMES_24(F) \
    F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15) F(16) F(17) F(18) F(19) \
    F(20) F(21) F(22) F(23)
#define TIMES_12(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)

// 24 accumulators hide the latency of 4 or 5 cycles on two ports; operands are 30 and 31, whose values do not matter.
#define ZMM_PRODUCT(i) "vpdpbusd %%zmm31, %%zmm30, %%zmm" #i "\n"
#define ALL_XMM \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
    "xmm13", "xmm14", "xmm15"

#ifdef WITH_AVX512
int64_t avx512_vnni(int64_t rounds) {
    int64_t left = rounds;
    __asm__ volatile("1:\n" TIMES_24(ZMM_PRODUCT) "dec %0\njnz 1b\n" "vzeroupper\n"
                     : "+r"(left)
                     :
                     : ALL_XMM, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "cc");
    return rounds * 24 * 64 * 2;  // 64 bytes a register
}
#endif

#define YMM_PRODUCT(i) "%{vex%} vpdpbusd %%ymm15, %%ymm14, %%ymm" #i "\n"

int64_t avx_vnni(int64_t rounds) {
    int64_t left = rounds;
    __asm__ volatile("1:\n" TIMES_12(YMM_PRODUCT) "dec %0\njnz 1b\n" "vzeroupper\n" : "+r"(left) : : ALL_XMM, "cc");
    return rounds * 12 * 32 * 2;
}

// Without VNNI: 16-bit products, summed in pairs, then added. vpmaddubsw would be twice as wide, and saturates.
#define WORD_PRODUCT(i) "vpmaddwd %%ymm15, %%ymm14, %%ymm13\nvpaddd %%ymm13, %%ymm" #i ", %%ymm" #i "\n"

int64_t avx2(int64_t rounds) {
    int64_t left = rounds;
    __asm__ volatile("1:\n" TIMES_12(WORD_PRODUCT) "dec %0\njnz 1b\n" "vzeroupper\n" : "+r"(left) : : ALL_XMM, "cc");
    return rounds * 12 * 16 * 2;
}

#ifdef WITH_AMX
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

// Intel SDM volume 1, chapter 18: palette 1 has 8 tiles of up to 16 rows of 64 bytes.
struct tile_configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

// arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA): Linux, Documentation/arch/x86/xstate.rst. 0 where granted.
int64_t ask_for_amx(void) { return syscall(SYS_arch_prctl, 0x1023, 18); }

int64_t amx(int64_t rounds) {
    struct tile_configuration tiles;
    memset(&tiles, 0, sizeof tiles);
    tiles.palette = 1;
    for (int i = 0; i < 8; i++) tiles.row_bytes[i] = 64, tiles.rows[i] = 16;
    int64_t left = rounds;
    __asm__ volatile(
        "ldtilecfg %1\n"
        "1:\n"
        "tdpbusd %%tmm6, %%tmm4, %%tmm0\n"
        "tdpbusd %%tmm7, %%tmm4, %%tmm1\n"
        "tdpbusd %%tmm6, %%tmm5, %%tmm2\n"
        "tdpbusd %%tmm7, %%tmm5, %%tmm3\n"
        "dec %0\njnz 1b\n"
        "tilerelease\n"
        : "+r"(left)
        : "m"(tiles)
        : "cc");
    return rounds * 4 * 16 * 16 * 64 * 2;
}
#endif
#endif

typedef uint64_t line __attribute__((vector_size(64)));

// Reads a buffer again and again; its length is a multiple of 256 bytes and its address of 64.
uint64_t read_memory(const line *buffer, int64_t bytes, int64_t rounds) {
    line a = {0}, b = {0}, c = {0}, d = {0};
    for (int64_t round = 0; round < rounds; round++) {
        const line *end = buffer + bytes / 64;
        for (const line *p = buffer; p < end; p += 4) {
            a ^= p[0];
            b ^= p[1];
            c ^= p[2];
            d ^= p[3];
        }
        __asm__ volatile("" : : : "memory");  // or two rounds would be one
    }
    a ^= b ^ c ^ d;
    return a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
}

// Two cores raise a number in turns, so often each: one when it is even, the other, whose `odd` is 1, when it is odd.
void hand_over(int64_t *number, int64_t odd, int64_t rounds) {
    for (int64_t round = 0; round < rounds; round++) {
        const int64_t mine = 2 * round + odd;
        while (__atomic_load_n(number, __ATOMIC_ACQUIRE) != mine) {}
        __atomic_store_n(number, mine + 1, __ATOMIC_RELEASE);
    }
}
