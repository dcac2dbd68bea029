// Shared by all kernels: vector loads, rounding, reductions and dependent launch.
// bf16 values travel eight at a time in 16-byte vectors; all arithmetic is fp32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cstdint>

using bf16 = __nv_bfloat16;

// What the next product takes: bf16, or with FP8 eight bits, e4m3 or with INT8 as well signed integers.
#ifndef FP8
#define FP8 0
#endif
#ifndef INT8
#define INT8 0
#endif
#if INT8
using Narrow = int8_t;
#else
using Narrow = __nv_fp8_e4m3;
#endif
#if FP8
using Output = Narrow;
#else
using Output = bf16;
#endif

constexpr float E4M3_MAX = 448.0f;

// Wait until the preceding kernel of the stream has finished and its writes are visible. Every kernel calls this in
// every thread before its first dependent access, so completion is transitive along a chain of dependent launches.
// Without the launch attribute, and below sm_90, it costs nothing.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Allow the following kernel to start: it still waits for our completion before it reads what we wrote.
__device__ __forceinline__ void release_successor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

struct Float8 {
  float v[8];
};

__device__ __forceinline__ Float8 load_bf16x8(const bf16* source) {
  uint4 raw = *reinterpret_cast<const uint4*>(source);
  Float8 out;
  const __nv_bfloat162* pairs = reinterpret_cast<const __nv_bfloat162*>(&raw);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float2 pair = __bfloat1622float2(pairs[i]);
    out.v[2 * i] = pair.x;
    out.v[2 * i + 1] = pair.y;
  }
  return out;
}

// Eight values of a product that was left in parts of its K, added up; `stride` values lie between two parts.
__device__ __forceinline__ Float8 load_parts(const bf16* source, int parts, size_t stride) {
  Float8 sum = load_bf16x8(source);
#pragma unroll 4
  for (int part = 1; part < parts; part++) {
    Float8 more = load_bf16x8(source + part * stride);
#pragma unroll
    for (int i = 0; i < 8; i++) sum.v[i] += more.v[i];
  }
  return sum;
}

__device__ __forceinline__ Float8 load_float8(const float* source) {
  Float8 out;
  *reinterpret_cast<float4*>(out.v) = *reinterpret_cast<const float4*>(source);
  *reinterpret_cast<float4*>(out.v + 4) = *reinterpret_cast<const float4*>(source + 4);
  return out;
}

__device__ __forceinline__ void store(bf16* target, const Float8& x) {
  uint4 raw;
  __nv_bfloat162* pairs = reinterpret_cast<__nv_bfloat162*>(&raw);
#pragma unroll
  for (int i = 0; i < 4; i++) pairs[i] = __floats2bfloat162_rn(x.v[2 * i], x.v[2 * i + 1]);
  *reinterpret_cast<uint4*>(target) = raw;
}

__device__ __forceinline__ uint32_t e4m3x4(float a, float b, float c, float d) {
  uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
  uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
  return low | (high << 16);
}

__device__ __forceinline__ void store(__nv_fp8_e4m3* target, const Float8& x) {
  uint2 raw = {e4m3x4(x.v[0], x.v[1], x.v[2], x.v[3]), e4m3x4(x.v[4], x.v[5], x.v[6], x.v[7])};
  *reinterpret_cast<uint2*>(target) = raw;
}

// Four values as signed integers, to the nearest even, saturating.
__device__ __forceinline__ uint32_t int8x4(float a, float b, float c, float d) {
  uint32_t high, all;
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, 0;" : "=r"(high) : "r"(__float2int_rn(d)), "r"(__float2int_rn(c)));
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(all) : "r"(__float2int_rn(b)), "r"(__float2int_rn(a)), "r"(high));
  return all;
}

__device__ __forceinline__ uint32_t narrow_x4(float a, float b, float c, float d) {
#if INT8
  return int8x4(a, b, c, d);
#else
  return e4m3x4(a, b, c, d);
#endif
}

__device__ __forceinline__ void store(int8_t* target, const Float8& x) {
  uint2 raw = {int8x4(x.v[0], x.v[1], x.v[2], x.v[3]), int8x4(x.v[4], x.v[5], x.v[6], x.v[7])};
  *reinterpret_cast<uint2*>(target) = raw;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// Sum over a block of up to 1024 threads; every thread gets the result. Ends with all threads past their reads.
__device__ __forceinline__ float block_sum(float x) {
  __shared__ float partial[32];
  int warps = blockDim.x / 32;
  x = warp_sum(x);
  if (warps == 1) return x;
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < warps; i++) total += partial[i];
  __syncthreads();
  return total;
}

// tanh in one instruction: absolute error under 2^-10.9, below the rounding of the bf16 values it feeds.
__device__ __forceinline__ float fast_tanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// GELU by its tanh form, as SigLIP and Gemma use it.
__device__ __forceinline__ float gelu_tanh(float x) {
  return 0.5f * x * (1.0f + fast_tanh(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

// gelu_tanh and its derivative.
__device__ __forceinline__ float2 gelu_with_slope(float x) {
  constexpr float ROOT = 0.7978845608028654f, CUBIC = 0.044715f;
  float t = fast_tanh(ROOT * (x + CUBIC * x * x * x)), half = 0.5f * (1.0f + t);
  return make_float2(x * half, half + 0.5f * x * (1.0f - t * t) * ROOT * (1.0f + 3.0f * CUBIC * x * x));
}
