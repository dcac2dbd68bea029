// Full attention inside each image, all keys of a head in shared memory (SigLIP: 256 tokens, 16 heads of 72).
// Architectures: 80 86 89 90a 100 110 120
//
// qkv is the raw output [views * TOKENS, 3 * HEADS * DIM] of the QKV product; real values are qkv * channel_scale + bias
// (channel_scale may be null). out is bf16 [views * TOKENS, HEADS * DIM], or with FP8 e4m3(value * inverse_scale).
// softmax(q k^T / sqrt(DIM)) v; logits and softmax in fp32, probabilities rounded to bf16 for the product with v.
//
// Keys and values are used raw. The scale of k goes into q; the bias of k adds the same to all logits of a query and
// drops out of the softmax; scale and bias of v act on the result, since probabilities sum to one.
//
// grid (TOKENS / 64, HEADS, views), 256 threads: two groups of four warps with 16 queries each; each group sees half
// of the keys. Shared memory: (2 * TOKENS + 64) * STRIDE bf16. DIM is a multiple of 8, padded with zeros to 16.
#ifndef TOKENS
#define TOKENS 256
#endif
#ifndef HEADS
#define HEADS 16
#endif
#ifndef DIM
#define DIM 72
#endif
#include "attention.cuh"

constexpr int PADDED = (DIM + 15) / 16 * 16;
constexpr int STRIDE = PADDED + 8;  // an odd number of 16-byte groups: ldmatrix without bank conflicts
constexpr int WIDTH = HEADS * DIM;
constexpr int KEYS = TOKENS / 2;    // of a group
constexpr int KEY_TILES = KEYS / 8;
constexpr int DIM_TILES = PADDED / 8;

// Start copying one head's rows as they are; columns beyond DIM become zero.
__device__ __forceinline__ void copy_head(bf16* target, const bf16* source, int rows) {
  constexpr int GROUPS = PADDED / 8;
  for (int i = threadIdx.x; i < rows * GROUPS; i += blockDim.x) {
    int row = i / GROUPS, d = i % GROUPS * 8;
    if (d < DIM)
      copy_async(target + row * STRIDE + d, source + (size_t)row * 3 * WIDTH + d);
    else
      *reinterpret_cast<uint4*>(target + row * STRIDE + d) = make_uint4(0, 0, 0, 0);
  }
}

// Queries in real units, times the scale of the keys.
__device__ __forceinline__ void load_queries(bf16* target, const bf16* source, const float* channel_scale,
                                             const float* bias, int column) {
  constexpr int GROUPS = PADDED / 8;
  for (int i = threadIdx.x; i < 64 * GROUPS; i += blockDim.x) {
    int row = i / GROUPS, d = i % GROUPS * 8;
    Float8 x = {};
    if (d < DIM) {
      x = load_bf16x8(source + (size_t)row * 3 * WIDTH + column + d);
      Float8 b = load_float8(bias + column + d);
      if (channel_scale) {
        Float8 own = load_float8(channel_scale + column + d), key = load_float8(channel_scale + WIDTH + column + d);
#pragma unroll
        for (int j = 0; j < 8; j++) x.v[j] = x.v[j] * own.v[j] * key.v[j], b.v[j] *= key.v[j];
      }
#pragma unroll
      for (int j = 0; j < 8; j++) x.v[j] += b.v[j];
    }
    store(target + row * STRIDE + d, x);
  }
}

// Normalise, put into real units and write this thread's part of its two rows.
__device__ __forceinline__ void finish(const float (&result)[DIM_TILES][4], const Softmax& state, Output* out,
                                       const float* channel_scale, const float* bias, float inverse_scale, int lane) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float factor = 1.0f / state.sum[half];
#pragma unroll
    for (int t = 0; t < DIM / 8; t++) {
      int d = t * 8 + lane % 4 * 2;
      float2 s = channel_scale ? *reinterpret_cast<const float2*>(channel_scale + d) : make_float2(1, 1);
      float2 b = *reinterpret_cast<const float2*>(bias + d);
      store_pair(out + (size_t)half * 8 * WIDTH + d, result[t][2 * half] * factor * s.x + b.x,
                 result[t][2 * half + 1] * factor * s.y + b.y, inverse_scale);
    }
  }
}

extern "C" __global__ void __launch_bounds__(256)
    vision_attention(const bf16* qkv, const float* channel_scale, const float* bias, Output* out, float inverse_scale) {
  extern __shared__ __align__(128) uint8_t shared[];
  bf16* keys = reinterpret_cast<bf16*>(shared);
  bf16* values = keys + TOKENS * STRIDE;
  bf16* queries = values + TOKENS * STRIDE;
  int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, head = blockIdx.y;
  size_t image = (size_t)blockIdx.z * TOKENS, first = image + blockIdx.x * 64;
  wait_for_predecessor();
  release_successor();
  copy_head(keys, qkv + image * 3 * WIDTH + WIDTH + head * DIM, TOKENS);
  commit_copies();
  copy_head(values, qkv + image * 3 * WIDTH + 2 * WIDTH + head * DIM, TOKENS);
  commit_copies();
  load_queries(queries, qkv + first * 3 * WIDTH, channel_scale, bias, head * DIM);
  wait_copies<1>();
  __syncthreads();

  float logits[KEY_TILES][4] = {}, result[DIM_TILES][4] = {};
  Softmax state;
  const int all[2] = {KEYS, KEYS};
  multiply_keys<PADDED, STRIDE>(logits, queries + warp * 16 * STRIDE, keys + group * KEYS * STRIDE, lane);
  exponentiate(logits, result, state, all, rsqrtf((float)DIM) * LOG2_E, lane);
  for (int half = 0; half < 2; half++) state.sum[half] = quad_sum(state.sum[half]);
  wait_copies<0>();
  __syncthreads();
  multiply_values<STRIDE>(result, logits, values + group * KEYS * STRIDE, lane);
  merge_groups(result, state, reinterpret_cast<float*>(keys), group, threadIdx.x % 128);
  if (group == 1) return;
  const float* value_scale = channel_scale ? channel_scale + 2 * WIDTH + head * DIM : nullptr;
  finish(result, state, out + (first + warp * 16 + lane / 4) * WIDTH + head * DIM, value_scale,
         bias + 2 * WIDTH + head * DIM, inverse_scale, lane);
}
