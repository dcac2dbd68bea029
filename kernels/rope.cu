// Rotary embedding of q and k, and the write of k and v into the cache, from the raw output of the QKV product.
// Architectures: 80 86 89 90a 100 110 120
//
// qkv is bf16 [parts, rows, (HEADS + 2) * DIM], in parts of the product's K: HEADS query heads, one key head, one value head. Row r has position
// p = r + (offset ? *offset : 0); its key and value go to row p of keys and values [capacity, DIM]; its rotated queries to
// queries [rows, HEADS * DIM]. table is [positions, DIM / 2] of (cos, sin). Half-split form (Gemma's rotate_half):
// (a, b) = (x[i], x[i + DIM / 2]) becomes (a cos - b sin, b cos + a sin).
// HEADS may be 0 (keys and values only). channel_scale turns the raw product into real units and may be null.
// channel_scale and table are weights: they are read before the wait, the table unless the offset decides where.
// One block a row, one thread for each group of eight columns of v and each pair of groups of q and k: blockDim.x is at
// least (HEADS + 1) * DIM / 16 + DIM / 8.
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

// A product's columns in real units.
__device__ __forceinline__ Float8 scaled(Float8 x, const Float8& scale) {
#pragma unroll
  for (int i = 0; i < 8; i++) x.v[i] *= scale.v[i];
  return x;
}

__device__ __forceinline__ Float8 load_scale(const float* channel_scale, int column) {
  if (channel_scale) return load_float8(channel_scale + column);
  return {1, 1, 1, 1, 1, 1, 1, 1};
}

// (cos, sin) of eight columns.
struct Angles {
  float4 pair[4];

  __device__ void load(const float2* table, size_t position, int column) {
    const float4* source = reinterpret_cast<const float4*>(table + position * HALF + column);
#pragma unroll
    for (int i = 0; i < 4; i++) pair[i] = __ldg(source + i);
  }
};

__device__ __forceinline__ void rotate(Float8& a, Float8& b, const Angles& angles) {
#pragma unroll
  for (int i = 0; i < 8; i++) {
    float4 t = angles.pair[i / 2];
    float cosine = i % 2 ? t.z : t.x, sine = i % 2 ? t.w : t.y, first = a.v[i] * cosine - b.v[i] * sine;
    b.v[i] = b.v[i] * cosine + a.v[i] * sine;
    a.v[i] = first;
  }
}

extern "C" __global__ void __launch_bounds__((ROTATED + COPIED + 31) / 32 * 32)
    rope(const bf16* qkv, int parts, const float* channel_scale, const float2* table, const int* offset, bf16* queries, bf16* keys,
         bf16* values) {
  size_t row = blockIdx.x;
  int item = threadIdx.x, head = item / (HALF / 8), i = item % (HALF / 8) * 8;
  bool rotated = item < ROTATED, active = item < ROTATED + COPIED;
  int first = rotated ? head * DIM + i : (HEADS + 1) * DIM + (item - ROTATED) * 8;
  Float8 first_scale, second_scale;
  Angles angles;
  if (active) first_scale = load_scale(channel_scale, first);
  if (rotated) second_scale = load_scale(channel_scale, first + HALF);
  if (rotated && !offset) angles.load(table, row, i);
  wait_for_predecessor();
  release_successor();
  if (!active) return;
  const bf16* source = qkv + row * WIDTH;
  size_t stride = (size_t)gridDim.x * WIDTH;
  size_t position = row + (offset ? *offset : 0);
  Float8 a = scaled(load_parts(source + first, parts, stride), first_scale);
  if (!rotated) {
    store(values + position * DIM + (item - ROTATED) * 8, a);
    return;
  }
  if (offset) angles.load(table, position, i);
  Float8 b = scaled(load_parts(source + first + HALF, parts, stride), second_scale);
  rotate(a, b, angles);
  bf16* target = head < HEADS ? queries + (row * HEADS + head) * DIM : keys + position * DIM;
  store(target + i, a);
  store(target + HALF + i, b);
}
