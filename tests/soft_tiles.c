/* AMX's tile instructions in C, for machines that have none; strict where the hardware faults, and where it leaves
   undefined what a program must not rely on.

   Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: LDTILECFG, TILELOADD, TILESTORED, TILEZERO,
   TILERELEASE, TDPBUSD. Tiles are state of a thread. What would be a fault there ends the process here, with a sentence
   on standard error. */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };

static __thread uint8_t tiles[TILES][ROWS][ROW_BYTES];
static __thread uint16_t columns[TILES]; /* bytes of a row */
static __thread uint8_t rows[TILES];
static __thread int configured;

static int granted = 1;
static int64_t products, releases, asked;

static void fault(const char *message, ...) {
  va_list values;
  va_start(values, message);
  fputs("soft tiles: ", stderr);
  vfprintf(stderr, message, values);
  fputc('\n', stderr);
  va_end(values);
  abort();
}

/* What Linux answers; the kernels ask before they use tiles. */
void soft_grant(int answer) { granted = answer; }
int64_t soft_permission(void) {
  __atomic_add_fetch(&asked, 1, __ATOMIC_RELAXED);
  return granted ? 0 : -1;
}

/* How often tiles were multiplied, given back, and asked for, by all threads. */
int64_t soft_products(void) { return products; }
int64_t soft_releases(void) { return releases; }
int64_t soft_asked(void) { return asked; }

static void need(int tile) {
  if (!granted) fault("an illegal instruction: no permission");
  if (!configured) fault("an illegal instruction: no configuration is loaded");
  if (tile < 0 || tile >= TILES || !rows[tile] || !columns[tile]) fault("tile %d is not configured", tile);
}

void soft_ldtilecfg(const uint8_t *configuration) {
  if (!granted) fault("an illegal instruction: no permission");
  if (configured) fault("a configuration is loaded over one that was not released");
  if (configuration[0] != 1) fault("palette %d", configuration[0]);
  if (configuration[1]) fault("start row %d", configuration[1]);
  for (int byte = 2; byte < 64; byte++) {
    int reserved = byte < 16 || (byte >= 32 && byte < 48) || byte >= 56;
    if (reserved && configuration[byte]) fault("reserved byte %d of the configuration is %d", byte, configuration[byte]);
  }
  for (int tile = 0; tile < TILES; tile++) {
    memcpy(&columns[tile], configuration + 16 + 2 * tile, 2);
    rows[tile] = configuration[48 + tile];
    if (columns[tile] > ROW_BYTES || rows[tile] > ROWS)
      fault("tile %d of %d rows of %d bytes", tile, rows[tile], columns[tile]);
  }
  memset(tiles, 0, sizeof tiles);
  configured = 1;
}

void soft_tilerelease(void) {
  if (!configured) fault("tiles are released that were not configured");
  configured = 0;
  memset(tiles, 0xAA, sizeof tiles);
  memset(rows, 0, sizeof rows);
  __atomic_add_fetch(&releases, 1, __ATOMIC_RELAXED);
}

void soft_tilezero(int8_t tile) {
  need(tile);
  memset(tiles[tile], 0, sizeof tiles[tile]);
}

void soft_tileloadd64(int8_t tile, const uint8_t *from, int64_t stride) {
  need(tile);
  memset(tiles[tile], 0, sizeof tiles[tile]);
  for (int row = 0; row < rows[tile]; row++) memcpy(tiles[tile][row], from + row * stride, columns[tile]);
}

void soft_tilestored64(int8_t tile, uint8_t *to, int64_t stride) {
  need(tile);
  for (int row = 0; row < rows[tile]; row++) memcpy(to + row * stride, tiles[tile][row], columns[tile]);
}

void soft_tdpbusd(int8_t sum, int8_t left, int8_t right) {
  need(sum), need(left), need(right);
  if (sum == left || sum == right || left == right) fault("tdpbusd %d, %d, %d needs three tiles", sum, left, right);
  if (rows[sum] != rows[left] || columns[sum] != columns[right] || columns[left] != 4 * rows[right] || columns[sum] % 4)
    fault("tdpbusd of %d x %d bytes and %d x %d bytes into %d x %d bytes", rows[left], columns[left], rows[right],
          columns[right], rows[sum], columns[sum]);
  for (int row = 0; row < rows[sum]; row++)
    for (int column = 0; column < columns[sum] / 4; column++) {
      uint32_t total;
      memcpy(&total, tiles[sum][row] + 4 * column, 4);
      for (int k = 0; k < columns[left] / 4; k++)
        for (int byte = 0; byte < 4; byte++)
          total += (uint32_t)((int32_t)tiles[left][row][4 * k + byte] * (int8_t)tiles[right][k][4 * column + byte]);
      memcpy(tiles[sum][row] + 4 * column, &total, 4);
    }
  __atomic_add_fetch(&products, 1, __ATOMIC_RELAXED);
}
