// Residual update and normalisation in one pass over a row; one block a row.
// Architectures: 80 86 89 90a 100 110 120
//
//   r   = (start ? start[row % start_rows] : residual[row]) + (sum over parts of delta[part, row] * delta_scale + bias) * gate
//   y   = normalise(r) * (1 + scale) + shift
//   out = bf16(y), or with FP8 e4m3(y * inverse_scale), saturating
//
// r is kept in fp32 and written back to residual, so rounding does not accumulate over layers. normalise is RMSNorm, or with
// LAYER_NORM a LayerNorm without affine part; eps is 1e-6 in both (Gemma, SigLIP). Affine weights that do not change
// during a run are folded into the next product; scale and shift are adaRMS modulations, a vector for all rows.
// delta bf16 [parts, rows, WIDTH] (raw output of the preceding product, in parts of its K), delta_scale, bias, gate, scale, shift and start may be null.
// WIDTH is a multiple of 8; blockDim.x is WIDTH / 8 rounded up to whole warps; gridDim.x is the number of rows.
#include "common.cuh"

#ifndef WIDTH
#define WIDTH 2048
#endif
#ifndef LAYER_NORM
#define LAYER_NORM 0
#endif
#ifndef FP8
#define FP8 0
#endif

#if FP8
using Output = __nv_fp8_e4m3;
#else
using Output = bf16;
#endif

constexpr float EPSILON = 1e-6f;

// x += (sum of delta * delta_scale + bias) * gate, each vector optional; `stride` values lie between two parts.
__device__ __forceinline__ void add_delta(Float8& x, const bf16* delta, int parts, size_t stride, const float* delta_scale,
                                          const float* bias, const float* gate, int column) {
  Float8 d = load_bf16x8(delta + column);
#pragma unroll 4
  for (int part = 1; part < parts; part++) {
    Float8 more = load_bf16x8(delta + part * stride + column);
#pragma unroll
    for (int i = 0; i < 8; i++) d.v[i] += more.v[i];
  }
  if (delta_scale) {
    Float8 s = load_float8(delta_scale + column);
#pragma unroll
    for (int i = 0; i < 8; i++) d.v[i] *= s.v[i];
  }
  if (bias) {
    Float8 b = load_float8(bias + column);
#pragma unroll
    for (int i = 0; i < 8; i++) d.v[i] += b.v[i];
  }
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

// Normalise the row that the block holds, eight values a thread; inactive threads hold zeros.
__device__ __forceinline__ void normalise(Float8& x, bool active) {
  if (LAYER_NORM) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) sum += x.v[i];
    float mean = block_sum(sum) / WIDTH;
#pragma unroll
    for (int i = 0; i < 8; i++) x.v[i] = active ? x.v[i] - mean : 0.0f;
  }
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) squares += x.v[i] * x.v[i];
  float factor = rsqrtf(block_sum(squares) / WIDTH + EPSILON);
#pragma unroll
  for (int i = 0; i < 8; i++) x.v[i] *= factor;
}

extern "C" __global__ void __launch_bounds__((WIDTH / 8 + 31) / 32 * 32)
    residual_norm(float* residual, const float* start, int start_rows, const bf16* delta, int parts,
                  const float* delta_scale, const float* bias, const float* gate, const float* scale, const float* shift, Output* out,
                  float inverse_scale) {
  wait_for_predecessor();
  release_successor();
  size_t row = blockIdx.x;
  int column = threadIdx.x * 8;
  bool active = column < WIDTH;
  Float8 x = {};
  if (active) {
    x = load_float8((start ? start + (row % start_rows) * WIDTH : residual + row * WIDTH) + column);
    if (delta) add_delta(x, delta + row * WIDTH, parts, (size_t)gridDim.x * WIDTH, delta_scale, bias, gate, column);
    if (delta || start) {
      float* target = residual + row * WIDTH + column;
      *reinterpret_cast<float4*>(target) = *reinterpret_cast<float4*>(x.v);
      *reinterpret_cast<float4*>(target + 4) = *reinterpret_cast<float4*>(x.v + 4);
    }
  }
  normalise(x, active);
  if (!active) return;
  modulate(x, scale, shift, column);
  if (FP8) {
#pragma unroll
    for (int i = 0; i < 8; i++) x.v[i] *= inverse_scale;
  }
  store(out + row * WIDTH + column, x);
}
