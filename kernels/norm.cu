// Residual update and RMSNorm in one pass over a row; one block a row.
// Architectures: 80 86 89 90a 100 110 120
//
//   r   = residual[row] + (sum over parts of delta[part, row] * delta_scale + bias) * gate
//   y   = normalise(r) * (1 + scale) + shift
//   out = bf16(y), or with FP8 y * inverse_scale in e4m3 (INT8: as integers), saturating
//
// r is kept in fp32 and written back to residual, so rounding does not accumulate over layers. normalise is RMSNorm with an
// eps of 1e-6 (Gemma). Weights that do not change during a run are folded into the next product; scale and shift are adaRMS
// modulations, a vector for all rows.
// The first *frozen rows (if frozen) take gate, scale and shift from `clean` values behind: those of flow time 0.
// updated: where r goes instead of residual; may be null. Without delta r is not written.
// delta bf16 [parts, rows, WIDTH] (raw output of the preceding product, in parts of its K), delta_scale, bias, gate, scale
// and shift may be null. delta_scale and bias are read before the wait: they are weights.
// WIDTH is a multiple of 8; blockDim.x is WIDTH / 8 rounded up to whole warps; gridDim.x is the number of rows.
#include "common.cuh"

#ifndef WIDTH
#define WIDTH 2048
#endif

constexpr float EPSILON = 1e-6f;

// Vectors that belong to the product behind delta. They are weights, so they are fetched before the wait.
struct DeltaVectors {
  Float8 scale, bias;

  __device__ void load(const float* delta_scale, const float* delta_bias, int column) {
#pragma unroll
    for (int i = 0; i < 8; i++) scale.v[i] = 1, bias.v[i] = 0;
    if (delta_scale) scale = load_float8(delta_scale + column);
    if (delta_bias) bias = load_float8(delta_bias + column);
  }
};

// x += (delta * delta_scale + bias) * gate
__device__ __forceinline__ void add_delta(Float8& x, Float8 d, const DeltaVectors& vectors, const float* gate, int column) {
#pragma unroll
  for (int i = 0; i < 8; i++) d.v[i] = d.v[i] * vectors.scale.v[i] + vectors.bias.v[i];
  if (gate) {
    Float8 g = load_float8(gate + column);
#pragma unroll
    for (int i = 0; i < 8; i++) d.v[i] *= g.v[i];
  }
#pragma unroll
  for (int i = 0; i < 8; i++) x.v[i] += d.v[i];
}

__device__ __forceinline__ void modulate(Float8& x, const float* scale, const float* shift, int column) {
  if (scale) {
    Float8 s = load_float8(scale + column);
#pragma unroll
    for (int i = 0; i < 8; i++) x.v[i] *= 1.0f + s.v[i];
  }
  if (shift) {
    Float8 s = load_float8(shift + column);
#pragma unroll
    for (int i = 0; i < 8; i++) x.v[i] += s.v[i];
  }
}

// Normalise the row that the block holds, eight values a thread; inactive threads hold zeros. The block meets once.
__device__ __forceinline__ void normalise(Float8& x) {
  constexpr int WARPS = (WIDTH / 8 + 31) / 32;
  __shared__ float partial[WARPS];
  float squares = 0, total = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) squares += x.v[i] * x.v[i];
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = squares;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < WARPS; i++) total += partial[i];
  float factor = rsqrtf(total / WIDTH + EPSILON);
#pragma unroll
  for (int i = 0; i < 8; i++) x.v[i] *= factor;
}

extern "C" __global__ void __launch_bounds__((WIDTH / 8 + 31) / 32 * 32)
    residual_norm(float* residual, const bf16* delta, int parts, const float* delta_scale, const float* bias,
                  const float* gate, const float* scale, const float* shift, Output* out, float inverse_scale,
                  const int* frozen, int clean, float* updated) {
  size_t row = blockIdx.x;
  int column = threadIdx.x * 8;
  bool active = column < WIDTH;
  DeltaVectors vectors;
  if (active && delta) vectors.load(delta_scale, bias, column);
  wait_for_predecessor();
  release_successor();
  Float8 x = {};
  if (frozen && (int)row < *frozen) {
    if (gate) gate += clean;
    scale += clean, shift += clean;
  }
  if (active) {
    x = load_float8(residual + row * WIDTH + column);
    if (delta) {
      Float8 d = load_parts(delta + row * WIDTH + column, parts, (size_t)gridDim.x * WIDTH);
      add_delta(x, d, vectors, gate, column);
      float* target = (updated ? updated : residual) + row * WIDTH + column;
      *reinterpret_cast<float4*>(target) = *reinterpret_cast<float4*>(x.v);
      *reinterpret_cast<float4*>(target + 4) = *reinterpret_cast<float4*>(x.v + 4);
    }
  }
  normalise(x);
  if (!active) return;
  modulate(x, scale, shift, column);
  if (FP8) {
#pragma unroll
    for (int i = 0; i < 8; i++) x.v[i] *= inverse_scale;
  }
  store(out + row * WIDTH + column, x);
}
