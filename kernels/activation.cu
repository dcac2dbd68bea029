// Element-wise work between two products of an MLP.
// Architectures: 80 86 89 90a 100 110 120
//
//   bias_gelu:  out[r, c] = gelu(x[r, c] * channel_scale[c] + bias[c])                          x is [rows, WIDTH]
//   gelu_gate:  out[r, c] = gelu(x[r, c] * s[c]) * (x[r, WIDTH + c] * s[WIDTH + c])             x is [rows, 2 * WIDTH]
//   gelu_gate_backward: the gradient of gelu_gate's x, bf16 [rows, 2 * WIDTH], from that of its result, bf16 in `parts` to be
//               added up, `stride` values apart; without s
//
// x is the raw bf16 output of the preceding product; channel_scale (s) turns it into real units and may be null (ones).
// With FP8 the result is multiplied by inverse_scale and rounded to e4m3 (INT8: to integers), saturating; without, it is bf16.
// Each thread handles eight columns; WIDTH is a multiple of 8. Any grid: blocks stride over the work.
#include "common.cuh"

#ifndef WIDTH
#define WIDTH 4304
#endif

constexpr int VECTORS = WIDTH / 8;

__device__ __forceinline__ void multiply(Float8& x, const float* factors) {
  if (factors == nullptr) return;
  Float8 f = load_float8(factors);
#pragma unroll
  for (int i = 0; i < 8; i++) x.v[i] *= f.v[i];
}

__device__ __forceinline__ void finish(Output* out, Float8& y, float inverse_scale) {
  if (FP8) {
#pragma unroll
    for (int i = 0; i < 8; i++) y.v[i] *= inverse_scale;
  }
  store(out, y);
}

extern "C" __global__ void __launch_bounds__(256)
    bias_gelu(const bf16* x, const float* channel_scale, const float* bias, Output* out, float inverse_scale, int rows) {
  wait_for_predecessor();
  release_successor();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < rows * VECTORS; i += gridDim.x * blockDim.x) {
    int column = (i % VECTORS) * 8;
    Float8 y = load_bf16x8(x + (size_t)i * 8);
    multiply(y, channel_scale ? channel_scale + column : nullptr);
    Float8 b = load_float8(bias + column);
#pragma unroll
    for (int j = 0; j < 8; j++) y.v[j] = gelu_tanh(y.v[j] + b.v[j]);
    finish(out + (size_t)i * 8, y, inverse_scale);
  }
}

extern "C" __global__ void __launch_bounds__(256)
    gelu_gate(const bf16* x, const float* channel_scale, Output* out, float inverse_scale, int rows) {
  wait_for_predecessor();
  release_successor();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < rows * VECTORS; i += gridDim.x * blockDim.x) {
    int row = i / VECTORS, column = (i % VECTORS) * 8;
    const bf16* gates = x + (size_t)row * 2 * WIDTH + column;
    Float8 g = load_bf16x8(gates), y = load_bf16x8(gates + WIDTH);
    multiply(g, channel_scale ? channel_scale + column : nullptr);
    multiply(y, channel_scale ? channel_scale + WIDTH + column : nullptr);
#pragma unroll
    for (int j = 0; j < 8; j++) y.v[j] *= gelu_tanh(g.v[j]);
    finish(out + (size_t)i * 8, y, inverse_scale);
  }
}

extern "C" __global__ void __launch_bounds__(256) gelu_gate_backward(const bf16* x, const bf16* upstream, int parts, int stride,
                                                                              bf16* out, int rows) {
  release_successor();
  wait_for_predecessor();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < rows * VECTORS; i += gridDim.x * blockDim.x) {
    size_t place = (size_t)(i / VECTORS) * 2 * WIDTH + (i % VECTORS) * 8;
    Float8 gate = load_bf16x8(x + place), up = load_bf16x8(x + place + WIDTH), g = load_parts(upstream + (size_t)i * 8, parts, stride);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float2 gelu = gelu_with_slope(gate.v[j]);
      gate.v[j] = g.v[j] * up.v[j] * gelu.y;
      up.v[j] = g.v[j] * gelu.x;
    }
    store(out + place, gate);
    store(out + place + WIDTH, up);
  }
}
