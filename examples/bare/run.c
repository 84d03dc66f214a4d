/* Run a compiled library on what a file holds, without TVM:
 *
 *     ./run MODEL.so main|reals INPUT OUTPUT [RUNS]
 *
 * INPUT holds batches as the library takes them, raw, one after the other: integers for "main", float32 for "reals";
 * OUTPUT gets what it makes of each. With RUNS, the last batch is run so many times more, and the median time printed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "network.h"

static int failed(const char *what, const char *why) {
  fprintf(stderr, "error: %s%s%s\n", what, *what ? ": " : "", why);
  return 1;
}

static void describe(const char *name, const Array *array) {
  printf("%s: %s%d [", name, array->kind == 'i' ? "int" : array->kind == 'u' ? "uint" : "float", array->bits);
  for (int i = 0; i < array->dimensions; ++i) printf("%s%lld", i ? ", " : "", (long long)array->shape[i]);
  printf("]\n");
}

static int by_value(const void *a, const void *b) {
  const double left = *(const double *)a, right = *(const double *)b;
  return (left > right) - (left < right);
}

static double milliseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static int print_median(Network *network, int runs) {
  double *times = malloc((size_t)runs * sizeof *times);
  if (!times) return failed("", "no memory");
  for (int i = 0; i < runs; ++i) {
    const double start = milliseconds();
    if (network_run(network)) return failed("", network_error());
    times[i] = milliseconds() - start;
  }
  qsort(times, (size_t)runs, sizeof *times, by_value);
  printf("%.3f ms a call, median of %d\n", times[runs / 2], runs);
  free(times);
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 5 || argc > 6) {
    fputs("usage: ./run MODEL.so main|reals INPUT OUTPUT [RUNS]\n", stderr);
    return 2;
  }
  Network *network = network_open(argv[1], argv[2]);
  if (!network) return failed("", network_error());
  const Array *input = network_input(network), *output = network_output(network);
  describe("input", input);
  describe("output", output);
  FILE *from = fopen(argv[3], "rb");
  if (!from) return failed(argv[3], strerror(errno));
  FILE *to = fopen(argv[4], "wb");
  if (!to) return failed(argv[4], strerror(errno));
  size_t batches = 0, found;
  while ((found = fread(input->data, 1, input->bytes, from)) == input->bytes) {
    if (network_run(network)) return failed(argv[3], network_error());
    if (fwrite(output->data, 1, output->bytes, to) != output->bytes) return failed(argv[4], strerror(errno));
    ++batches;
  }
  if (found || !batches) return failed(argv[3], "does not hold whole batches");
  if (fclose(to)) return failed(argv[4], strerror(errno));
  fclose(from);
  const int runs = argc == 6 ? atoi(argv[5]) : 0;
  const int status = runs > 0 ? print_median(network, runs) : 0;
  network_close(network);
  return status;
}
