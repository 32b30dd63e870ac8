/* What is around the kernels of cpu_kernels.c: XLA's interface to custom calls, and jobs that threads share.

   A job is cut into tasks, which the calling thread and XLA's own threads claim one after the other; nobody waits for a
   thread that has not begun. */

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

enum {
  GRAIN = 1 << 17, /* multiplications that are worth a thread */
  SPINS = 4096,    /* looks at a counter before another thread is let on */
};

typedef int64_t Int;

static Int least(Int a, Int b) { return a < b ? a : b; }
static Int most(Int a, Int b) { return a > b ? a : b; }
static Int parts(Int n, Int size) { return (n + size - 1) / size; }

/* `first_tasks`, which all the others need, and `tasks`, each of them with `scratch` floats of its own. */
typedef struct Job Job;
struct Job {
  void (*first)(const Job *, Int), (*each)(const Job *, Int, float *);
  Int first_tasks, tasks, scratch, blocks, chunk, B, G, R, D, F, K, P, Q, S, T;
  const float *x, *w, *key, *value, *new_key, *new_value;
  const uint8_t *mask;
  const int32_t *position;
  float *turned, *y, *total, *highest;
  atomic_int holders;
  _Atomic Int first_claimed, first_done, claimed, done;
};

static void await(_Atomic Int *counter, Int count) {
  for (Int spins = 0; atomic_load(counter) < count; spins++)
    if (spins > SPINS) sched_yield();
}

static void *room_for(size_t bytes) {
  void *room = malloc(bytes);
  if (!room) abort();
  return room;
}

static void work(Job *job) {
  Int at;
  while ((at = atomic_fetch_add(&job->first_claimed, 1)) < job->first_tasks) {
    job->first(job, at);
    atomic_fetch_add(&job->first_done, 1);
  }
  await(&job->first_done, job->first_tasks);
  if (atomic_load(&job->claimed) >= job->tasks) return;
  float *scratch = job->scratch ? room_for(job->scratch * sizeof(float)) : NULL;
  while ((at = atomic_fetch_add(&job->claimed, 1)) < job->tasks) {
    job->each(job, at, scratch);
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

static Int threads_of(XLA_FFI_CallFrame *frame) {
  Int threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args asked = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx,
                                              &threads};
  return frame->api->XLA_FFI_ThreadPool_NumThreads(&asked) || threads < 1 ? 1 : threads;
}

/* Do a job of so many multiplications. A copy of it lives for as long as a thread knows of it. */
static XLA_FFI_Error *run(XLA_FFI_CallFrame *frame, const Job *made, Int threads, Int multiplications) {
  Job *job = room_for(sizeof *job);
  memcpy(job, made, sizeof *job);
  atomic_store(&job->holders, 1);
  Int helpers = least(threads - 1, least(job->tasks - 1, multiplications / GRAIN));
  for (Int i = 0; i < helpers; i++) {
    XLA_FFI_ThreadPool_Schedule_Args asked = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, help,
                                              job};
    atomic_fetch_add(&job->holders, 1);
    if (frame->api->XLA_FFI_ThreadPool_Schedule(&asked)) release(job);
  }
  work(job);
  await(&job->done, job->tasks);
  release(job);
  return NULL;
}

/* XLA asks each handler which version of the interface it was made for. */
static bool told_version(XLA_FFI_CallFrame *frame) {
  XLA_FFI_Metadata_Extension *asked = (void *)frame->extension_start;
  if (!asked || asked->extension_base.type != XLA_FFI_Extension_Metadata) return false;
  asked->metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  asked->metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  return true;
}

static XLA_FFI_Buffer *argument(XLA_FFI_CallFrame *frame, int at) { return frame->args.args[at]; }
static XLA_FFI_Buffer *result(XLA_FFI_CallFrame *frame, int at) { return frame->rets.rets[at]; }
