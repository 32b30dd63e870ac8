/* What the kernels share: the shape of their tiles, XLA's interface of custom calls, and jobs shared by threads.

   A job is divided into tasks, which the calling thread and the threads of XLA's pool claim one by one. No thread waits
   for one that has not started. */

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

enum {
  GRAIN = 1 << 17, /* multiplications that pay for waking a thread */
  SPINS = 4096,    /* polls of a counter before the core is yielded */
};

/* The registers hold MAX_ROWS rows of sums of two vectors of LANES floats, and two vectors of weights. */
#if defined(__AVX512F__)
enum { LANES = 16, MAX_ROWS = 14 };
#elif defined(__AVX__)
enum { LANES = 8, MAX_ROWS = 6 };
#else
enum { LANES = 4, MAX_ROWS = 12 };
#endif
enum {
  WIDTH = 2 * LANES,
  TASKS_PER_THREAD = 4, /* to balance the load */
};

#define INLINE static inline __attribute__((always_inline))

typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef int64_t Int;

static inline Int min_int(Int a, Int b) { return a < b ? a : b; }
static inline Int max_int(Int a, Int b) { return a > b ? a : b; }
static inline Int div_ceil(Int n, Int size) { return (n + size - 1) / size; }

/* The rows of block b, from *first: blocks of at most MAX_ROWS rows, equal up to one. */
static inline Int block_rows(Int rows, Int blocks, Int b, Int *first) {
  Int quotient = rows / blocks, remainder = rows % blocks;
  *first = b * quotient + min_int(b, remainder);
  return quotient + (b < remainder);
}

/* `setup_tasks`, on which all others depend, then `tasks`, each with `scratch` floats of its own. */
typedef struct Job Job;
struct Job {
  void (*setup)(const Job *, Int), (*run_task)(const Job *, Int, float *);
  Int setup_tasks, tasks, scratch, blocks, chunk, B, G, R, D, F, K, P, Q, S, T;
  const float *x, *w, *key, *value, *new_key, *new_value;
  const uint8_t *mask;
  const int32_t *position, *weight_sum;
  const float *scale;
  float *xt, *y, *total, *highest;
  atomic_int holders;
  _Atomic Int setup_claimed, setup_done, claimed, done;
};

static void await(_Atomic Int *counter, Int count) {
  for (Int spins = 0; atomic_load(counter) < count; spins++)
    if (spins > SPINS) sched_yield();
}

static void *allocate(size_t bytes) {
  void *memory = malloc(bytes);
  if (!memory) abort();
  return memory;
}

static void work(Job *job) {
  Int task;
  while ((task = atomic_fetch_add(&job->setup_claimed, 1)) < job->setup_tasks) {
    job->setup(job, task);
    atomic_fetch_add(&job->setup_done, 1);
  }
  await(&job->setup_done, job->setup_tasks);
  if (atomic_load(&job->claimed) >= job->tasks) return;
  float *scratch = job->scratch ? allocate(job->scratch * sizeof(float)) : NULL;
  while ((task = atomic_fetch_add(&job->claimed, 1)) < job->tasks) {
    job->run_task(job, task, scratch);
    atomic_fetch_add(&job->done, 1);
  }
  free(scratch);
}

static void release(Job *job) {
  if (atomic_fetch_sub(&job->holders, 1) == 1) free(job);
}

static void help(void *job) {
  work(job);
  release(job);
}

static inline Int thread_count(XLA_FFI_CallFrame *frame) {
  Int threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx,
                                              &threads};
  return frame->api->XLA_FFI_ThreadPool_NumThreads(&args) || threads < 1 ? 1 : threads;
}

/* Run a job. `multiplications`, its size, sets the number of helping threads. A copy of it lives until all are done. */
static inline XLA_FFI_Error *run(XLA_FFI_CallFrame *frame, const Job *prepared, Int threads, Int multiplications) {
  Job *job = allocate(sizeof *job);
  memcpy(job, prepared, sizeof *job);
  atomic_store(&job->holders, 1);
  Int helpers = min_int(threads - 1, min_int(job->tasks - 1, multiplications / GRAIN));
  for (Int i = 0; i < helpers; i++) {
    XLA_FFI_ThreadPool_Schedule_Args args = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, help,
                                              job};
    atomic_fetch_add(&job->holders, 1);
    if (frame->api->XLA_FFI_ThreadPool_Schedule(&args)) release(job);
  }
  work(job);
  await(&job->done, job->tasks);
  release(job);
  return NULL;
}

/* XLA first calls a handler to query the interface version that it was compiled for: true if this is such a call. */
static inline bool report_version(XLA_FFI_CallFrame *frame) {
  XLA_FFI_Metadata_Extension *query = (void *)frame->extension_start;
  if (!query || query->extension_base.type != XLA_FFI_Extension_Metadata) return false;
  query->metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  query->metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  return true;
}

static inline XLA_FFI_Buffer *argument(XLA_FFI_CallFrame *frame, int i) { return frame->args.args[i]; }
static inline XLA_FFI_Buffer *result(XLA_FFI_CallFrame *frame, int i) { return frame->rets.rets[i]; }
