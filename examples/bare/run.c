/* Run a compiled library on what a file holds, without TVM:
 *
 *     ./run MODEL.so main|reals INPUT OUTPUT [RUNS]
 *
 * INPUT holds batches as the library takes them, raw, one after the other: integers for "main", float32 for "reals";
 * OUTPUT gets what it makes of each, all or nothing. With RUNS, the last batch is run so many times more, and the
 * median time printed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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
  int status = 0;
  for (int i = 0; i < runs && !status; ++i) {
    const double start = milliseconds();
    if (network_run(network)) status = failed("", network_error());
    times[i] = milliseconds() - start;
  }
  if (!status) {
    qsort(times, (size_t)runs, sizeof *times, by_value);
    printf("%.3f ms a call, median of %d\n", times[runs / 2], runs);
  }
  free(times);
  return status;
}

static int run_batches(Network *network, const char *input_path, FILE *from, const char *output_path, FILE *to) {
  const Array *input = network_input(network), *output = network_output(network);
  size_t batches = 0, found;
  while ((found = fread(input->data, 1, input->bytes, from)) == input->bytes) {
    if (network_run(network)) return failed(input_path, network_error());
    if (fwrite(output->data, 1, output->bytes, to) != output->bytes) return failed(output_path, strerror(errno));
    ++batches;
  }
  if (ferror(from)) return failed(input_path, strerror(errno));
  return found || !batches ? failed(input_path, "does not hold whole batches") : 0;
}

static bool is_same_file(FILE *from, const char *path) {
  struct stat one, other;
  return !fstat(fileno(from), &one) && !stat(path, &other) && one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

/* A file is written as OUTPUT.part until it is whole; a device, a pipe or a link is written as it stands. */
static int write_output(Network *network, const char *input_path, FILE *from, const char *output_path) {
  struct stat there;
  const bool apart = lstat(output_path, &there) || S_ISREG(there.st_mode);
  char written[PATH_MAX];
  if (snprintf(written, sizeof written, "%s%s", output_path, apart ? ".part" : "") >= (int)sizeof written)
    return failed(output_path, strerror(ENAMETOOLONG));
  if (is_same_file(from, output_path)) return failed(output_path, "is the input too");
  if (is_same_file(from, written)) return failed(written, "is the input, and where the output is until it is whole");
  FILE *to = fopen(written, "wb");
  if (!to) return failed(output_path, strerror(errno));
  int status = run_batches(network, input_path, from, output_path, to);
  if (fclose(to) && !status) status = failed(output_path, strerror(errno));
  if (apart && !status && rename(written, output_path)) status = failed(output_path, strerror(errno));
  if (apart && status) remove(written);
  return status;
}

static int run_file(Network *network, const char *input_path, const char *output_path) {
  FILE *from = fopen(input_path, "rb");
  if (!from) return failed(input_path, strerror(errno));
  const int status = write_output(network, input_path, from, output_path);
  fclose(from);
  return status;
}

/* -1 of what is no number of calls. */
static int calls_of(const char *text) {
  char *end;
  const long calls = strtol(text, &end, 10);
  return end == text || *end || calls < 1 || calls > INT_MAX ? -1 : (int)calls;
}

int main(int argc, char **argv) {
  const int runs = argc == 6 ? calls_of(argv[5]) : 0;
  if (argc < 5 || argc > 6 || runs < 0) {
    fputs("usage: ./run MODEL.so main|reals INPUT OUTPUT [RUNS]\n", stderr);
    return 2;
  }
  Network *network = network_open(argv[1], argv[2]);
  if (!network) return failed("", network_error());
  describe("input", network_input(network));
  describe("output", network_output(network));
  int status = run_file(network, argv[3], argv[4]);
  if (!status && runs) status = print_median(network, runs);
  network_close(network);
  return status;
}
