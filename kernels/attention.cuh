// Softmax with a running maximum, on logits and results held in matrix fragments; and how a result leaves.
// Both mma.m16n8 and wgmma give a thread parts of two rows, lane / 4 and lane / 4 + 8 of its warp's 16: in tile t of
// eight columns the elements [0], [1] of the first row and [2], [3] of the second, at columns 2 * (lane % 4) and + 1.
#pragma once
#include "mma.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

// For a thread's two rows: largest logit so far, in units of log2(e), and the thread's share of the sum of exponentials.
struct Softmax {
  float top[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};
};

// Turn raw logits into probabilities relative to the running maximum, and rescale what was accumulated before.
// scale: of the logits, with log2(e). seen[half]: how many of these keys the row may use; may be zero or negative.
template <int KEY_TILES, int DIM_TILES>
__device__ __forceinline__ void exponentiate(float (&logits)[KEY_TILES][4], float (&out)[DIM_TILES][4], Softmax& state,
                                             const int (&seen)[2], float scale, int lane) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float top = state.top[half];
#pragma unroll
    for (int t = 0; t < KEY_TILES; t++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float& x = logits[t][2 * half + j];
        x = t * 8 + lane % 4 * 2 + j < seen[half] ? x * scale : -INFINITY;
        top = fmaxf(top, x);
      }
    }
    top = quad_max(top);
    float reference = top == -INFINITY ? 0.0f : top;  // a row that has seen no key yet
    float correction = exp2f(state.top[half] - reference), sum = 0;
#pragma unroll
    for (int t = 0; t < KEY_TILES; t++) {
#pragma unroll
      for (int j = 2 * half; j < 2 * half + 2; j++) sum += logits[t][j] = exp2f(logits[t][j] - reference);
    }
    state.sum[half] = state.sum[half] * correction + sum;
    state.top[half] = top;
#pragma unroll
    for (int t = 0; t < DIM_TILES; t++) out[t][2 * half] *= correction, out[t][2 * half + 1] *= correction;
  }
}

// Probabilities of key tiles t and t + 1 as the A operand of one k16 product.
template <int KEY_TILES>
__device__ __forceinline__ void as_operand(uint32_t (&a)[4], const float (&p)[KEY_TILES][4], int t) {
  a[0] = pack_bf16(p[t][0], p[t][1]);
  a[1] = pack_bf16(p[t][2], p[t][3]);
  a[2] = pack_bf16(p[t + 1][0], p[t + 1][1]);
  a[3] = pack_bf16(p[t + 1][2], p[t + 1][3]);
}

// Two groups of 128 threads saw different keys of the same rows: add the second group's result to the first's.
// exchange: (4 + 4 * DIM_TILES) * 128 floats of shared memory that nobody reads any more. Sums must be complete.
template <int DIM_TILES>
__device__ __forceinline__ void merge_groups(float (&out)[DIM_TILES][4], Softmax& state, float* exchange, int group,
                                             int thread) {
  float* slot = exchange + thread;
  __syncthreads();
  if (group == 1) {
#pragma unroll
    for (int h = 0; h < 2; h++) slot[h * 128] = state.top[h], slot[(2 + h) * 128] = state.sum[h];
#pragma unroll
    for (int t = 0; t < DIM_TILES; t++) {
#pragma unroll
      for (int j = 0; j < 4; j++) slot[(4 + t * 4 + j) * 128] = out[t][j];
    }
  }
  __syncthreads();
  if (group == 1) return;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float top = fmaxf(state.top[h], slot[h * 128]);
    float mine = exp2f(state.top[h] - top), other = exp2f(slot[h * 128] - top);
    state.sum[h] = state.sum[h] * mine + slot[(2 + h) * 128] * other;
#pragma unroll
    for (int t = 0; t < DIM_TILES; t++) {
#pragma unroll
      for (int j = 2 * h; j < 2 * h + 2; j++) out[t][j] = out[t][j] * mine + slot[(4 + t * 4 + j) * 128] * other;
    }
  }
}

#if FP8
using Output = Narrow;
__device__ __forceinline__ void store_pair(Output* target, float a, float b, float inverse_scale) {
  *reinterpret_cast<uint16_t*>(target) = narrow_x4(a * inverse_scale, b * inverse_scale, 0, 0);
}
#else
using Output = bf16;
__device__ __forceinline__ void store_pair(Output* target, float a, float b, float) {
  *reinterpret_cast<uint32_t*>(target) = pack_bf16(a, b);
}
#endif
