// How blocks of a running kernel hand data to each other through L2: the data is its own flag.
//
// Every word of an exchange buffer is PENDING until its one writer stores it, and readers look at it again until it is not. So a
// trip takes one store and one load, where data, fence and flag would take three of them one after the other. PENDING is a NaN
// that no conversion and no arithmetic of this GPU produces (they give 0x7fffffff, 0x7fff, 0x7f), in any of the formats with one;
// writers of integers leave it out (expert_common.cuh, pack_four).
//
// Buffers are double: layer n of the loop uses half n % 2. When a thread has written its words for layer n it resets the same
// words of the other half, at once or a phase later. Their readers are done by then, because what the thread read in layer n depends on all that all
// blocks wrote in layer n - 1; and the next look at them is most of a layer away. Words of rows beyond the last, which nobody
// writes, are zero from the start.
//
// Partial sums are many and need no exact last bit, so they spare the reset: the lowest bit of each store of 8 or 16 bytes, which
// are single-copy atomic, is (n / 2) % 2, its tag. PENDING has the wrong tag for the first two layers.
#pragma once
#include "expert_common.cuh"

constexpr uint32_t PENDING = 0xffffffffu;
#ifndef PATIENCE_LOOKS
#define PATIENCE_LOOKS (1 << 22)  // some seconds: an error is better than a silent robot
#endif
constexpr int PATIENCE = PATIENCE_LOOKS;

__device__ __forceinline__ uint4 look(const uint4* source) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(source)
               : "memory");
  return v;
}
__device__ __forceinline__ uint32_t look(const uint32_t* source) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(source) : "memory");
  return v;
}

// The largest of all words: PENDING if any of them is.
__device__ __forceinline__ uint32_t largest(uint32_t top, uint32_t v) { return max(top, v); }
__device__ __forceinline__ uint32_t largest(uint32_t top, uint4 v) { return max(max(max(max(top, v.x), v.y), v.z), v.w); }

// Look again until no lane of the warp misses a word, of the first `count`.
template <class T, int N>
__device__ __forceinline__ void await(T (&v)[N], const T* source, int stride, int count = N) {
  for (int patience = PATIENCE;; patience--) {
    uint32_t top = 0;
#pragma unroll
    for (int i = 0; i < N; i++)
      if (i < count) top = largest(top, v[i]);
    if (!__any_sync(0xffffffffu, top == PENDING)) return;
    if (patience == 0) __trap();
#pragma unroll
    for (int i = 0; i < N; i++)
      if (i < count) v[i] = look(source + i * stride);
  }
}

// Wait until one of what a warp is going to read is there.
__device__ __forceinline__ void await_sign(const uint4* source) {
  for (int patience = PATIENCE; __any_sync(0xffffffffu, largest(0, look(source)) == PENDING); patience--)
    if (patience == 0) __trap();
}

__device__ __forceinline__ void put(uint4* target, uint4 v) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
__device__ __forceinline__ void put(uint2* target, uint2 v) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(target), "r"(v.x), "r"(v.y) : "memory");
}
__device__ __forceinline__ void put(uint32_t* target, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(target), "r"(v) : "memory");
}
__device__ __forceinline__ void set_pending(uint4* target) { put(target, make_uint4(PENDING, PENDING, PENDING, PENDING)); }
__device__ __forceinline__ void set_pending(uint2* target) { put(target, make_uint2(PENDING, PENDING)); }
__device__ __forceinline__ void set_pending(uint32_t* target) { put(target, PENDING); }

// Store a word into this layer's half of a buffer of two times `half` words, and reset it in the other half.
template <class T>
__device__ __forceinline__ void publish(T* buffer, size_t half, int layer, size_t index, T value) {
  put(buffer + (layer & 1) * half + index, value);
  set_pending(buffer + (~layer & 1) * half + index);
}

// ---- tagged stores

__device__ __forceinline__ uint32_t tag_of(int layer) { return layer >> 1 & 1; }

__device__ __forceinline__ void put_tagged(uint4* target, uint4 v, uint32_t tag) {
  asm volatile(
      "{\n.reg .b64 low, high;\n.reg .b128 all;\nmov.b64 low, {%1, %2};\nmov.b64 high, {%3, %4};\nmov.b128 all, {low, high};\n"
      "st.relaxed.gpu.global.b128 [%0], all;\n}" ::"l"(target),
      "r"((v.x & ~1u) | tag), "r"(v.y), "r"(v.z), "r"(v.w)
      : "memory");
}
__device__ __forceinline__ void put_tagged(uint2* target, uint2 v, uint32_t tag) {
  asm volatile("{\n.reg .b64 all;\nmov.b64 all, {%1, %2};\nst.relaxed.gpu.global.b64 [%0], all;\n}" ::"l"(target),
               "r"((v.x & ~1u) | tag), "r"(v.y)
               : "memory");
}

__device__ __forceinline__ uint4 look_whole(const uint4* source) {
  uint4 v;
  asm volatile(
      "{\n.reg .b64 low, high;\n.reg .b128 all;\nld.relaxed.gpu.global.b128 all, [%4];\nmov.b128 {low, high}, all;\n"
      "mov.b64 {%0, %1}, low;\nmov.b64 {%2, %3}, high;\n}"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(source)
      : "memory");
  return v;
}
__device__ __forceinline__ uint2 look_whole(const uint2* source) {
  uint2 v;
  asm volatile("{\n.reg .b64 all;\nld.relaxed.gpu.global.b64 all, [%2];\nmov.b64 {%0, %1}, all;\n}"
               : "=r"(v.x), "=r"(v.y)
               : "l"(source)
               : "memory");
  return v;
}

template <int N, class T>
__device__ __forceinline__ uint32_t wrong_tags(const T (&v)[N], uint32_t tag) {
  uint32_t wrong = 0;
#pragma unroll
  for (int i = 0; i < N; i++) wrong |= v[i].x ^ tag;
  return wrong & 1;
}

template <class T, int N>
__device__ __forceinline__ void look_all(T (&v)[N], const T* source, int stride) {
#pragma unroll
  for (int i = 0; i < N; i++) v[i] = look_whole(source + i * stride);
}

template <class T, int N>
__device__ __forceinline__ void await_tagged(T (&v)[N], const T* source, int stride, uint32_t tag) {
  for (int patience = PATIENCE;; patience--) {
    look_all(v, source, stride);
    if (!__any_sync(0xffffffffu, wrong_tags(v, tag))) return;
    if (patience == 0) __trap();
  }
}

// Where a thread reads a fragment of the 64 rows, in 16-byte words: its warp's row tile, its lane. Threads with rows beyond the last
// only read what others read anyway: nobody uses what comes of it.
__device__ __forceinline__ int fragment_place(int rows) {
  const int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32, tile = min(warp, (rows - 1) / 16);
  return tile * 32 + (tile * 16 + lane / 4 < rows ? lane : lane % 4);
}

__device__ __forceinline__ void store_shared(uint32_t address, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
