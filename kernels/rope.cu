// Rotary embedding of q and k, and the write of k and v into the cache, from the raw output of the QKV product.
// Architectures: 80 86 89 90a 100 110 120
//
// qkv is [rows, (HEADS + 2) * DIM]: HEADS query heads, one key head, one value head. Row r has position
// p = r + (offset ? *offset : 0); its key and value go to row p of keys and values [capacity, DIM]; its rotated queries to
// queries [rows, HEADS * DIM]. table is [positions, DIM / 2] of (cos, sin). Half-split form (Gemma's rotate_half):
// (a, b) = (x[i], x[i + DIM / 2]) becomes (a cos - b sin, b cos + a sin).
// HEADS may be 0 (keys and values only). channel_scale turns the raw product into real units and may be null.
// One block a row; each thread strides over groups of eight columns.
#include "common.cuh"

#ifndef HEADS
#define HEADS 8
#endif
#ifndef DIM
#define DIM 256
#endif

constexpr int HALF = DIM / 2;
constexpr int WIDTH = (HEADS + 2) * DIM;
constexpr int ROTATED = (HEADS + 1) * HALF / 8;  // work items that rotate two groups of eight
constexpr int COPIED = DIM / 8;                  // work items that copy eight values of v

__device__ __forceinline__ Float8 load_scaled(const bf16* row, const float* channel_scale, int column) {
  Float8 x = load_bf16x8(row + column);
  if (channel_scale) {
    Float8 s = load_float8(channel_scale + column);
#pragma unroll
    for (int i = 0; i < 8; i++) x.v[i] *= s.v[i];
  }
  return x;
}

__device__ __forceinline__ void rotate(Float8& a, Float8& b, const float2* angles) {
#pragma unroll
  for (int i = 0; i < 8; i += 2) {
    float4 t = *reinterpret_cast<const float4*>(angles + i);
    float first = a.v[i] * t.x - b.v[i] * t.y, second = a.v[i + 1] * t.z - b.v[i + 1] * t.w;
    b.v[i] = b.v[i] * t.x + a.v[i] * t.y;
    b.v[i + 1] = b.v[i + 1] * t.z + a.v[i + 1] * t.w;
    a.v[i] = first;
    a.v[i + 1] = second;
  }
}

extern "C" __global__ void __launch_bounds__(192)
    rope(const bf16* qkv, const float* channel_scale, const float2* table, const int* offset, bf16* queries, bf16* keys,
         bf16* values) {
  wait_for_predecessor();
  release_successor();
  size_t row = blockIdx.x;
  size_t position = row + (offset ? *offset : 0);
  const bf16* source = qkv + row * WIDTH;
  for (int item = threadIdx.x; item < ROTATED + COPIED; item += blockDim.x) {
    if (item >= ROTATED) {
      int i = (item - ROTATED) * 8;
      store(values + position * DIM + i, load_scaled(source, channel_scale, (HEADS + 1) * DIM + i));
      continue;
    }
    int head = item / (HALF / 8), i = item % (HALF / 8) * 8;
    Float8 a = load_scaled(source, channel_scale, head * DIM + i);
    Float8 b = load_scaled(source, channel_scale, head * DIM + HALF + i);
    rotate(a, b, table + position * HALF + i);
    bf16* target = head < HEADS ? queries + (row * HEADS + head) * DIM : keys + position * DIM;
    store(target + i, a);
    store(target + HALF + i, b);
  }
}
