// What a gradient becomes on its way back through an RMSNorm and the gated residual in front of it; one block a row.
// Architectures: 80 86 89 90a 100 110 120
//
// Forward (norm.cu): n = x / rms(x) * (1 + scale) + shift.  Backward, with g = upstream * (1 + scale) and y = x / rms(x):
//   gradient += (g - y * mean(g * y)) / rms(x)        of x
//   out       = bf16(gradient * gate)                 of the sublayer whose gated output went into x; not if out is null
//
// x fp32, gradient fp32, out bf16: [rows, WIDTH]; upstream bf16, in `parts` to be added up, `stride` values apart. scale and gate fp32 [WIDTH], may be null (0 and 1).
// x is read before the wait: between the kernel that wrote it and this one lies a product that started after it had ended.
// WIDTH is a multiple of 8; blockDim.x is WIDTH / 8 rounded up to whole warps; gridDim.x is the number of rows.
#include "common.cuh"

#ifndef WIDTH
#define WIDTH 1024
#endif

constexpr float EPSILON = 1e-6f;

__device__ __forceinline__ void store_fp32(float* target, const Float8& x) {
  *reinterpret_cast<float4*>(target) = *reinterpret_cast<const float4*>(x.v);
  *reinterpret_cast<float4*>(target + 4) = *reinterpret_cast<const float4*>(x.v + 4);
}

// Sums over the block of both values, for every thread.
__device__ __forceinline__ float2 block_sums(float a, float b) {
  constexpr int WARPS = (WIDTH / 8 + 31) / 32;
  __shared__ float2 partial[WARPS];
  a = warp_sum(a), b = warp_sum(b);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = make_float2(a, b);
  __syncthreads();
  float2 total = {0, 0};
#pragma unroll
  for (int i = 0; i < WARPS; i++) total.x += partial[i].x, total.y += partial[i].y;
  return total;
}

extern "C" __global__ void __launch_bounds__((WIDTH / 8 + 31) / 32 * 32)
    norm_backward(const float* x, const bf16* upstream, int parts, int stride, const float* scale, const float* gate, float* gradient,
                  bf16* out) {
  const size_t place = (size_t)blockIdx.x * WIDTH + threadIdx.x * 8;
  const int column = threadIdx.x * 8;
  const bool active = column < WIDTH;
  Float8 value = {}, g = {}, total = {};
  release_successor();
  if (active) {
    value = load_float8(x + place);
  }
  wait_for_predecessor();
  float squares = 0, dot = 0;
  if (active) {
    total = load_float8(gradient + place), g = load_parts(upstream + place, parts, stride);
    if (scale) {
      Float8 s = load_float8(scale + column);
#pragma unroll
      for (int i = 0; i < 8; i++) g.v[i] *= 1.0f + s.v[i];
    }
#pragma unroll
    for (int i = 0; i < 8; i++) squares += value.v[i] * value.v[i], dot += value.v[i] * g.v[i];
  }
  const float2 sums = block_sums(squares, dot);
  if (!active) return;
  const float factor = rsqrtf(sums.x / WIDTH + EPSILON), along = sums.y / WIDTH * factor * factor * factor;
#pragma unroll
  for (int i = 0; i < 8; i++) total.v[i] += g.v[i] * factor - value.v[i] * along;
  store_fp32(gradient + place, total);
  if (!out) return;
  if (gate) {
    Float8 s = load_float8(gate + column);
#pragma unroll
    for (int i = 0; i < 8; i++) total.v[i] *= s.v[i];
  }
  store(out + place, total);
}
