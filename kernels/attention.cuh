// Softmax with a running maximum, on logits and results held in matrix fragments; the products before and after it by mma;
// and how a result leaves.
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

// logits[16 x 8 * KEY_TILES] += a warp's 16 queries times keys^T: rows of HEAD_DIM values in shared memory, STRIDE apart.
template <int HEAD_DIM, int STRIDE, int KEY_TILES>
__device__ __forceinline__ void multiply_keys(float (&logits)[KEY_TILES][4], const bf16* queries, const bf16* keys, int lane) {
#pragma unroll(HEAD_DIM > 128 ? 4 : HEAD_DIM / 16)
  for (int k = 0; k < HEAD_DIM; k += 16) {
    uint32_t a[4];
    load_matrices(a, queries + (lane % 16) * STRIDE + k + lane / 16 * 8);
#pragma unroll
    for (int t = 0; t < KEY_TILES; t += 2) {
      uint32_t b[4];
      load_matrices(b, keys + (t * 8 + lane / 16 * 8 + lane % 8) * STRIDE + k + lane / 8 % 2 * 8);
      mma(logits[t], a, b[0], b[1]);
      mma(logits[t + 1], a, b[2], b[3]);
    }
  }
}

// out[16 x 8 * DIM_TILES] += probabilities of KEY_TILES tiles of keys times those keys' values, rows STRIDE apart.
template <int STRIDE, int DIM_TILES, int KEY_TILES>
__device__ __forceinline__ void multiply_values(float (&out)[DIM_TILES][4], const float (&p)[KEY_TILES][4],
                                                const bf16* values, int lane) {
#pragma unroll
  for (int t = 0; t < KEY_TILES; t += 2) {
    uint32_t a[4];
    as_operand(a, p, t);
#pragma unroll
    for (int d = 0; d < DIM_TILES; d += 2) {
      uint32_t b[4];
      load_matrices_transposed(b, values + (t * 8 + lane % 16) * STRIDE + d * 8 + lane / 16 * 8);
      mma(out[d], a, b[0], b[1]);
      mma(out[d + 1], a, b[2], b[3]);
    }
  }
}

// Start copying `rows` rows of HEAD_DIM values to rows STRIDE apart; rows beyond `valid` are zero filled by plain stores.
template <int HEAD_DIM, int STRIDE>
__device__ __forceinline__ void load_rows(bf16* target, const bf16* source, int rows, int valid, int thread, int threads) {
  for (int i = thread; i < rows * HEAD_DIM / 8; i += threads) {
    int row = i / (HEAD_DIM / 8), d = i % (HEAD_DIM / 8) * 8;
    if (row < valid)
      copy_async(target + row * STRIDE + d, source + (size_t)row * HEAD_DIM + d);
    else
      *reinterpret_cast<uint4*>(target + row * STRIDE + d) = make_uint4(0, 0, 0, 0);
  }
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
    state.top[h] = top, state.sum[h] = state.sum[h] * mine + slot[(2 + h) * 128] * other;
#pragma unroll
    for (int t = 0; t < DIM_TILES; t++) {
#pragma unroll
      for (int j = 2 * h; j < 2 * h + 2; j++) out[t][j] = out[t][j] * mine + slot[(4 + t * 4 + j) * 128] * other;
    }
  }
}

#if FP8
__device__ __forceinline__ void store_pair(Output* target, float a, float b, float inverse_scale) {
  *reinterpret_cast<uint16_t*>(target) = narrow_x4(a * inverse_scale, b * inverse_scale, 0, 0);
}
#else
__device__ __forceinline__ void store_pair(Output* target, float a, float b, float) {
  *reinterpret_cast<uint32_t*>(target) = pack_bf16(a, b);
}
#endif
