/* The hot loops of decoding on a CPU, as two XLA custom calls (see cpu_kernels.py):

     jaxlm_matmul      y = x W^T of a few rows with weights in panels (P, D, WIDTH), WIDTH adjacent output channels
     jaxlm_attention   masked softmax attention of a few queries per row to keys (B, G, H, S) and values (B, G, S, H)

   Sums over D add their terms in order for any number of rows and threads: the result of a row does not depend on the
   other rows. Shape letters as in jaxlm.types. */

#include <float.h>
#include <math.h>
#include <string.h>

#include "cpu_kernels.h"

enum {
  DEPTH_BLOCK = 512, /* of D at a time, so that this part of a panel stays in the L2 cache, and that of x in L1 */
  PREFETCH = 32,     /* rows of weights that are prefetched */
};

int64_t jaxlm_panel_width(void) { return WIDTH; }

static Int padded(Int n) { return div_ceil(n, WIDTH) * WIDTH; }

/* y (R, n <= WIDTH) = (or += if `add`) x W with x (D, R) and D rows of W, `step` floats apart. R is a constant after
   inlining, so that the sums stay in registers. */
INLINE void tile(const int R, Int D, const float *x, const float *w, Int step, float *y, Int y_step, Int n, bool add) {
  Vec sum[MAX_ROWS][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = (Vec){0};
  for (Int d = 0; d < D; d++) {
    const float *row = w + d * step;
    Vec low = *(const Vec *)row, high = *(const Vec *)(row + LANES);
    __builtin_prefetch(row + PREFETCH * step, 0, 2);
    if (LANES == 16) __builtin_prefetch(row + PREFETCH * step + LANES, 0, 2);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      sum[r][0] += low * x[d * R + r];
      sum[r][1] += high * x[d * R + r];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    float edge[WIDTH] = {0}, *out = n == WIDTH ? y + r * y_step : edge;
    if (n < WIDTH && add) memcpy(edge, y + r * y_step, n * sizeof(float));
    if (add) sum[r][0] += *(Vec *)out, sum[r][1] += *(Vec *)(out + LANES);
    *(Vec *)out = sum[r][0], *(Vec *)(out + LANES) = sum[r][1];
    if (n < WIDTH) memcpy(y + r * y_step, edge, n * sizeof(float));
  }
}

typedef void Tile(Int, const float *, const float *, Int, float *, Int, Int, bool);
#define TILE(R)                                                                                                      \
  static void tile_##R(Int D, const float *x, const float *w, Int step, float *y, Int y_step, Int n, bool add) {     \
    tile(R <= MAX_ROWS ? R : 1, D, x, w, step, y, y_step, n, add);                                                   \
  }
TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)
static Tile *const tiles[] = {NULL,   tile_1, tile_2, tile_3,  tile_4,  tile_5,  tile_6, tile_7,
                              tile_8, tile_9, tile_10, tile_11, tile_12, tile_13, tile_14};

static void transpose(Int rows, Int D, const float *x, Int step, float *out) {
  for (Int r = 0; r < rows; r++)
    for (Int d = 0; d < D; d++) out[d * rows + r] = x[r * step + d];
}

/* jaxlm_matmul: x (R, D), panels (P, D, WIDTH) -> y (R, F), and scratch memory for x in blocks of (D, rows). */

static void transpose_block(const Job *job, Int b) {
  Int first, rows = block_rows(job->R, job->blocks, b, &first);
  transpose(rows, job->D, job->x + first * job->D, job->D, job->xt + first * job->D);
}

static void multiply_panels(const Job *job, Int task, float *scratch) {
  (void)scratch;
  Int D = job->D, F = job->F, last = min_int((task + 1) * job->chunk, job->P);
  for (Int p = task * job->chunk; p < last; p++)
    for (Int d = 0; d < D; d += DEPTH_BLOCK)
      for (Int b = 0; b < job->blocks; b++) {
        Int first, rows = block_rows(job->R, job->blocks, b, &first);
        tiles[rows](min_int(D - d, DEPTH_BLOCK), job->xt + first * D + d * rows, job->w + (p * D + d) * WIDTH, WIDTH,
                    job->y + first * F + p * WIDTH, F, min_int(F - p * WIDTH, WIDTH), d > 0);
      }
}

XLA_FFI_Error *jaxlm_matmul(XLA_FFI_CallFrame *frame) {
  if (report_version(frame)) return NULL;
  XLA_FFI_Buffer *x = argument(frame, 0), *w = argument(frame, 1), *y = result(frame, 0);
  Int threads = thread_count(frame);
  Job job = {.setup = transpose_block, .run_task = multiply_panels, .R = x->dims[0], .D = x->dims[1], .P = w->dims[0],
             .F = y->dims[1], .x = x->data, .w = w->data, .y = y->data, .xt = result(frame, 1)->data};
  job.setup_tasks = job.blocks = div_ceil(job.R, MAX_ROWS);
  job.chunk = div_ceil(job.P, TASKS_PER_THREAD * threads);
  job.tasks = div_ceil(job.P, job.chunk);
  return run(frame, &job, threads, job.R * job.D * job.F);
}

/* jaxlm_attention: scaled queries (B, G, R, H), keys (B, G, H, S), values (B, G, S, H), mask (B, Q, S), whose row r % Q
   is that of query r -> for each query the sum of w * value, the sum of w, and the highest score, where
   w = exp(score - highest).

   With more operands, S is (C, K), and new keys and values of K beams, (B, K, T, G, H) each, are first written to the
   positions (B, T), 0 to C - 1, or C to drop them; in place, since the caches are results too. */

/* e^x for x <= 0, within two units in the last place: 2^n e^r with |r| <= ln 2 / 2, and e^r by its Taylor series. */
INLINE Vec exponential(Vec x) {
  const float rounder = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, kept in the last bits */
  Ints tiny = x < -87.0f;
  x = (Vec)((Ints)x & ~tiny);
  Vec shifted = x * 1.44269504f + rounder, n = shifted - rounder, r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec e = r * (1 / 5040.0f) + 1 / 720.0f;
  e = e * r + 1 / 120.0f;
  e = e * r + 1 / 24.0f;
  e = e * r + 1 / 6.0f;
  e = e * r + 0.5f;
  e = e * r * r + r + 1.0f;
  e = (Vec)((Ints)e + (((Ints)shifted - (Ints)((Vec){0} + rounder)) << 23));
  return (Vec)((Ints)e & ~tiny);
}

/* tile() over `columns` columns of W, a multiple of WIDTH or not: lanes beyond them hold the next values in memory, and
   near `end`, the end of the allocation, columns are copied to `edge`. y has rows of y_step floats. */
static void multiply(Int rows, Int D, const float *x, const float *w, Int step, const float *end, Int columns, float *y,
                     Int y_step, float *edge) {
  for (Int col = 0; col < columns; col += WIDTH) {
    Int n = min_int(y_step - col, WIDTH);
    bool inside = w + (D - 1) * step + col + WIDTH <= end;
    for (Int d = 0; d < D && !inside; d++)
      for (Int i = 0; i < min_int(columns - col, WIDTH); i++) edge[d * WIDTH + i] = w[d * step + col + i];
    tiles[rows](D, x, inside ? w + col : edge, inside ? step : WIDTH, y + col, y_step, n, false);
  }
}

/* The first key that any of these queries sees, and in *end one past the last: masked keys around are skipped. */
static Int key_range(const Job *job, Int b, Int first, Int rows, Int *end) {
  Int begin = job->S;
  *end = 0;
  for (Int r = first; r < first + min_int(rows, job->Q); r++) {
    const uint8_t *row = job->mask + (b * job->Q + r % job->Q) * job->S;
    Int last = job->S;
    while (last > *end && !row[last - 1]) last--;
    if (last > *end) *end = last;
    const uint8_t *first_seen = memchr(row, 1, begin);
    if (first_seen) begin = first_seen - row;
  }
  return min_int(begin, *end);
}

INLINE Vec select_lanes(const uint8_t *mask, Vec yes, Vec no) {
  Ints take = __builtin_convertvector(*(const Bytes *)mask, Ints) != 0;
  return (Vec)(((Ints)yes & take) | ((Ints)no & ~take));
}

/* Replace S scores, a multiple of LANES, by w. Returns the sum of w. */
static float exp_scores(float *score, const uint8_t *mask, Int S, float *highest) {
  const Vec none = (Vec){0} - INFINITY;
  Vec high = (Vec){0} - FLT_MAX, sum = {0};
  for (Int s = 0; s < S; s += LANES) {
    Vec x = select_lanes(mask + s, *(Vec *)(score + s), none);
    high = (Vec)(((Ints)x & (x > high)) | ((Ints)high & ~(x > high)));
    *(Vec *)(score + s) = x;
  }
  float total = 0;
  *highest = -FLT_MAX;
  for (int lane = 0; lane < LANES; lane++) *highest = high[lane] > *highest ? high[lane] : *highest;
  for (Int s = 0; s < S; s += LANES) sum += *(Vec *)(score + s) = exponential(*(Vec *)(score + s) - *highest);
  for (int lane = 0; lane < LANES; lane++) total += sum[lane];
  return total;
}

/* Queries of one head, `rows` from row `at` of the results, attend to the keys from `begin` to `end`. */
static void attend_head(const Job *job, Int item, Int at, Int rows, Int begin, Int end, const uint8_t *mask,
                        float *score) {
  Int H = job->D, S = job->S, room = padded(S), count = end - begin, all = job->B * job->G * H * S;
  float *xt = score + MAX_ROWS * room, *edge = xt + MAX_ROWS * max_int(room, H);
  Int lanes = div_ceil(count, LANES) * LANES;
  transpose(rows, H, job->x + at * H, H, xt);
  multiply(rows, H, xt, job->key + item * H * S + begin, S, job->key + all, count, score, room, edge);
  for (Int r = 0; r < rows; r++)
    job->total[at + r] = exp_scores(score + r * room, mask + r * room, lanes, job->highest + at + r);
  transpose(rows, count, score, room, xt);
  multiply(rows, count, xt, job->value + (item * S + begin) * H, H, job->value + all, H, job->y + at * H, H, edge);
}

/* Write the new keys and values of head g of row b, just before their neighbors are read. */
static void write_new(const Job *job, Int b, Int g) {
  Int G = job->G, H = job->D, K = job->K, T = job->T, C = job->S / K;
  float *key = (float *)job->key + (b * G + g) * H * C * K, *value = (float *)job->value + (b * G + g) * C * K * H;
  for (Int t = 0; t < T; t++) {
    Int c = job->position[b * T + t];
    for (Int k = 0; k < K && c >= 0 && c < C; k++) {
      Int from = (((b * K + k) * T + t) * G + g) * H;
      memcpy(value + (c * K + k) * H, job->new_value + from, H * sizeof(float));
      for (Int h = 0; h < H; h++) key[(h * C + c) * K + k] = job->new_key[from + h];
    }
  }
}

/* A task: some heads of a row of the batch. */
static void attend_heads(const Job *job, Int task, float *scratch) {
  Int S = job->S, Q = job->Q, room = padded(S), b = task / job->P, head = task % job->P * job->chunk;
  Int last = min_int(head + job->chunk, job->G);
  uint8_t *mask = (uint8_t *)(scratch + job->scratch - MAX_ROWS * room / sizeof(float));
  for (Int g = head; g < last && job->new_key; g++) write_new(job, b, g);
  for (Int block = 0; block < job->blocks; block++) {
    Int first, rows = block_rows(job->R, job->blocks, block, &first), end, begin = key_range(job, b, first, rows, &end);
    memset(mask, 0, MAX_ROWS * room);
    for (Int r = 0; r < rows; r++)
      memcpy(mask + r * room, job->mask + (b * Q + (first + r) % Q) * S + begin, end - begin);
    for (Int item = b * job->G + head; item < b * job->G + last; item++)
      attend_head(job, item, item * job->R + first, rows, begin, end, mask, scratch);
  }
}

XLA_FFI_Error *jaxlm_attention(XLA_FFI_CallFrame *frame) {
  if (report_version(frame)) return NULL;
  XLA_FFI_Buffer *query = argument(frame, 0), *key = argument(frame, 1), *mask = argument(frame, 3);
  Job job = {.run_task = attend_heads, .B = query->dims[0], .G = query->dims[1], .R = query->dims[2],
             .D = query->dims[3], .S = key->dims[3] * (key->rank > 4 ? key->dims[4] : 1), .Q = mask->dims[1],
             .x = query->data, .key = key->data, .value = argument(frame, 2)->data, .mask = mask->data,
             .y = result(frame, 0)->data, .total = result(frame, 1)->data, .highest = result(frame, 2)->data};
  if (frame->args.size > 4) {
    XLA_FFI_Buffer *new = argument(frame, 4);
    job.K = new->dims[1], job.T = new->dims[2], job.new_key = new->data, job.new_value = argument(frame, 5)->data;
    job.position = argument(frame, 6)->data, job.key = result(frame, 3)->data, job.value = result(frame, 4)->data;
  }
  Int threads = thread_count(frame), room = padded(job.S), wide = max_int(room, job.D);
  job.chunk = min_int(job.G, div_ceil(job.B * job.G, TASKS_PER_THREAD * threads));
  job.P = div_ceil(job.G, job.chunk);
  job.tasks = job.B * job.P;
  job.blocks = div_ceil(job.R, MAX_ROWS);
  job.scratch = MAX_ROWS * (room + wide) + wide * WIDTH + MAX_ROWS * room / sizeof(float);
  return run(frame, &job, threads, 2 * job.B * job.G * job.R * job.S * job.D);
}
