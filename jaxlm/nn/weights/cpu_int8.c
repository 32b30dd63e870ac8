/* Products of few rows with int8 weights, as XLA custom calls (see cpu_kernels.py):

     jaxlm_matmul_int8           x (R, D) float32, panels (P, D/4, WIDTH, 4) int8, scale (F) -> y (R, F)
     jaxlm_matmul_int8_dynamic   the same, and the sums of the weights (F)

   Of the second, each row of x is rounded to int8 by its largest magnitude, as `weight_formats.quantize_rows` does;
   products of bytes are summed exactly, so that y is the same on every processor, for any number of rows and threads. */

#include <float.h>
#include <math.h>

#include "cpu_kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

/* x86 multiplies unsigned by signed bytes: x + OFFSET is stored, and OFFSET times the sum of the weights subtracted. */
#if defined(__ARM_FEATURE_DOTPROD)
enum { OFFSET = 0 };
#else
enum { OFFSET = 128 };
#endif

/* Without a rounding of x, weights become floats in registers, or bfloat16, which holds them exactly, where the processor
   multiplies pairs of those; x is then rounded to bfloat16. */
#if defined(__AVX512BF16__)
enum { NUMBERS = 2 }; /* of x in a word */
#else
enum { NUMBERS = 1 };
#endif

enum { BYTES = 4, CHUNK = 64, LARGEST = 127 };

/* In each lane, sum + the products of the four bytes of x with the four signed bytes of w, exactly. */
INLINE Ints dot_bytes(Ints sum, Ints x, Ints w) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#elif defined(__AVX512BW__)
  __m512i low = _mm512_set1_epi16(0xff), even = _mm512_srai_epi16(_mm512_slli_epi16((__m512i)w, 8), 8);
  __m512i evens = _mm512_madd_epi16(_mm512_and_si512((__m512i)x, low), even);
  __m512i odds = _mm512_madd_epi16(_mm512_srli_epi16((__m512i)x, 8), _mm512_srai_epi16((__m512i)w, 8));
  return sum + (Ints)evens + (Ints)odds;
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  __m256i low = _mm256_set1_epi16(0xff), even = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)w, 8), 8);
  __m256i evens = _mm256_madd_epi16(_mm256_and_si256((__m256i)x, low), even);
  __m256i odds = _mm256_madd_epi16(_mm256_srli_epi16((__m256i)x, 8), _mm256_srai_epi16((__m256i)w, 8));
  return sum + (Ints)evens + (Ints)odds;
#elif defined(__ARM_FEATURE_DOTPROD)
  return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)x, (int8x16_t)w);
#else
  for (int shift = 0; shift < 32; shift += 8) sum += ((x >> shift) & 0xff) * ((w << (24 - shift)) >> 24);
  return sum;
#endif
}

/* y (R, n <= WIDTH) from x (D4, R) of four bytes each and D4 rows of a panel. */
INLINE void tile_int8(const int R, const Job *job, const int32_t *x, const float *scale_R, const int32_t *w, Int f,
                      float *y) {
  Int n = min_int(job->F - f, WIDTH), D4 = job->D;
  Ints sum[MAX_ROWS][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = (Ints){0};
  for (Int d = 0; d < D4; d++) {
    Ints low = *(const Ints *)(w + d * WIDTH), high = *(const Ints *)(w + d * WIDTH + LANES);
    __builtin_prefetch(w + (d + 32) * WIDTH, 0, 2);
    __builtin_prefetch(w + (d + 32) * WIDTH + LANES, 0, 2);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      Ints bytes = (Ints){0} + x[d * R + r];
      sum[r][0] = dot_bytes(sum[r][0], bytes, low);
      sum[r][1] = dot_bytes(sum[r][1], bytes, high);
    }
  }
  float scale[WIDTH] = {0};
  int32_t offset[WIDTH] = {0};
  for (Int i = 0; i < n; i++) scale[i] = job->scale[f + i], offset[i] = OFFSET * job->weight_sum[f + i];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    float out[WIDTH];
    for (int half = 0; half < 2; half++) {
      Ints exact = sum[r][half] - *(Ints *)(offset + half * LANES);
      *(Vec *)(out + half * LANES) = __builtin_convertvector(exact, Vec) * scale_R[r] * *(Vec *)(scale + half * LANES);
    }
    memcpy(y + r * job->F + f, out, n * sizeof(float));
  }
}

/* A byte of each lane as a float. */
INLINE Ints float_bits(Ints w, int byte) {
  return (Ints)__builtin_convertvector((w << (24 - 8 * byte)) >> 24, Vec);
}

/* The weights that a word of x is multiplied with. */
INLINE Ints widen(Ints w, int word) {
  if (NUMBERS == 1) return float_bits(w, word);
  return ((float_bits(w, 2 * word) >> 16) & 0xffff) | (float_bits(w, 2 * word + 1) & ~0xffff);
}

INLINE Vec multiply_words(Vec sum, Ints x, Ints w) {
#if defined(__AVX512BF16__)
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
  return sum + (Vec)x * (Vec)w;
#endif
}

/* The same from x, (D / NUMBERS, R) words. */
INLINE void tile_weights(const int R, const Job *job, const int32_t *x, const int32_t *w, Int f, float *y) {
  Int n = min_int(job->F - f, WIDTH);
  Vec sum[MAX_ROWS][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = (Vec){0};
  for (Int d = 0; d < job->D; d++, w += WIDTH) {
    Ints low = *(const Ints *)w, high = *(const Ints *)(w + LANES);
    __builtin_prefetch(w + 16 * WIDTH, 0, 2);
    __builtin_prefetch(w + 16 * WIDTH + LANES, 0, 2);
#pragma GCC unroll 4
    for (int word = 0; word < BYTES / NUMBERS; word++, x += R) {
      Ints low_weights = widen(low, word), high_weights = widen(high, word);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        Ints numbers = (Ints){0} + x[r];
        sum[r][0] = multiply_words(sum[r][0], numbers, low_weights);
        sum[r][1] = multiply_words(sum[r][1], numbers, high_weights);
      }
    }
  }
  float scale[WIDTH] = {0}, out[WIDTH];
  memcpy(scale, job->scale + f, n * sizeof(float));
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    *(Vec *)out = sum[r][0] * *(Vec *)scale, *(Vec *)(out + LANES) = sum[r][1] * *(Vec *)(scale + LANES);
    memcpy(y + r * job->F + f, out, n * sizeof(float));
  }
}

typedef void Tile8(const Job *, const int32_t *, const float *, const int32_t *, Int, float *);
#define TILE8(R)                                                                                                       \
  static void tile8_##R(const Job *job, const int32_t *x, const float *scale, const int32_t *w, Int f, float *y) {     \
    if (scale)                                                                                                         \
      tile_int8(R <= MAX_ROWS ? R : 1, job, x, scale, w, f, y);                                                        \
    else                                                                                                               \
      tile_weights(R <= MAX_ROWS ? R : 1, job, x, w, f, y);                                                            \
  }
TILE8(1) TILE8(2) TILE8(3) TILE8(4) TILE8(5) TILE8(6) TILE8(7)
TILE8(8) TILE8(9) TILE8(10) TILE8(11) TILE8(12) TILE8(13) TILE8(14)
static Tile8 *const tiles[] = {NULL,    tile8_1, tile8_2, tile8_3,  tile8_4,  tile8_5,  tile8_6, tile8_7,
                               tile8_8, tile8_9, tile8_10, tile8_11, tile8_12, tile8_13, tile8_14};

/* The scale of a row: its largest magnitude / 127; NaN if a number of it is not finite. */
static float row_scale(const float *x, Int D) {
  float largest = FLT_MIN, unknown = 0;
  for (Int d = 0; d < D; d++) {
    float size = fabsf(x[d]);
    largest = size > largest ? size : largest;
    unknown += x[d] * 0;
  }
  return largest / LARGEST + unknown;
}

/* A block of rows as bytes: x (D4, rows) of four bytes, after it in memory the scales of all rows. */
static void quantize_block(const Job *job, Int b) {
  const float rounder = 12582912.0f; /* 1.5 * 2^23: adding it rounds to the nearest, ties to even */
  Int first, rows = block_rows(job->R, job->blocks, b, &first), D = job->K;
  for (Int r = 0; r < rows; r++) {
    const float *x = job->x + (first + r) * D;
    float scale = job->highest[first + r] = row_scale(x, D);
    int32_t *out = (int32_t *)job->xt + first * job->D + r;
    for (Int begin = 0; begin < D; begin += CHUNK) {
      Int n = min_int(D - begin, CHUNK);
      uint8_t bytes[CHUNK] __attribute__((aligned(4))) = {0};
      for (Int d = 0; d < n; d++) {
        float rounded = x[begin + d] / scale + rounder;
        int32_t bits;
        memcpy(&bits, &rounded, sizeof bits);
        bytes[d] = (uint8_t)(bits - 0x4B400000 + OFFSET);
      }
      for (Int d = 0; d < div_ceil(n, BYTES); d++) memcpy(out + (begin / BYTES + d) * rows, bytes + d * BYTES, BYTES);
    }
  }
}

/* A block of rows as words, (D / NUMBERS, rows), where D is a multiple of BYTES; bfloat16 is the nearest, ties to even. */
static void transpose_block(const Job *job, Int b) {
  Int first, rows = block_rows(job->R, job->blocks, b, &first), D = job->K;
  uint32_t *out = (uint32_t *)job->xt + first * job->D * BYTES / NUMBERS;
  memset(out, 0, rows * job->D * BYTES / NUMBERS * sizeof *out);
  for (Int r = 0; r < rows; r++)
    for (Int d = 0; d < D; d++) {
      uint32_t bits;
      memcpy(&bits, job->x + (first + r) * D + d, sizeof bits);
      if (NUMBERS == 2) bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16 << d % 2 * 16;
      out[d / NUMBERS * rows + r] |= bits;
    }
}

static void multiply_int8(const Job *job, Int task, float *scratch) {
  (void)scratch;
  Int last = min_int((task + 1) * job->chunk, job->P);
  for (Int p = task * job->chunk; p < last; p++)
    for (Int b = 0; b < job->blocks; b++) {
      Int first, rows = block_rows(job->R, job->blocks, b, &first);
      Int start = first * job->D * (job->highest ? 1 : BYTES / NUMBERS);
      tiles[rows](job, (const int32_t *)job->xt + start, job->highest ? job->highest + first : NULL,
                  (const int32_t *)job->w + p * job->D * WIDTH, p * WIDTH, job->y + first * job->F);
    }
}

static XLA_FFI_Error *matmul(XLA_FFI_CallFrame *frame, bool dynamic) {
  if (report_version(frame)) return NULL;
  XLA_FFI_Buffer *x = argument(frame, 0), *w = argument(frame, 1), *y = result(frame, 0);
  Int threads = thread_count(frame);
  Job job = {.setup = dynamic ? quantize_block : transpose_block, .run_task = multiply_int8, .R = x->dims[0],
             .K = x->dims[1], .P = w->dims[0], .D = w->dims[1], .F = y->dims[1], .x = x->data, .w = w->data,
             .scale = argument(frame, 2)->data, .y = y->data, .xt = result(frame, 1)->data};
  if (dynamic) job.weight_sum = argument(frame, 3)->data, job.highest = result(frame, 2)->data;
  job.setup_tasks = job.blocks = div_ceil(job.R, MAX_ROWS);
  job.chunk = div_ceil(job.P, TASKS_PER_THREAD * threads);
  job.tasks = div_ceil(job.P, job.chunk);
  return run(frame, &job, threads, job.R * job.D * job.F);
}

XLA_FFI_Error *jaxlm_matmul_int8(XLA_FFI_CallFrame *frame) { return matmul(frame, false); }

XLA_FFI_Error *jaxlm_matmul_int8_dynamic(XLA_FFI_CallFrame *frame) { return matmul(frame, true); }
