// Gemma's MLP up to its hidden layer, for many rows on Hopper: gate and up product, GELU and rounding in one kernel.
// Architectures: 90a
//
// a [rows, K] and weights [2 * width, K] in bf16, e4m3 with FP8, signed integers with FP8 and INT8; channel_scale fp32 [2 * width], null in bf16.
// gate, up = (a * weights^T) * channel_scale; out [rows, width] = gelu_tanh(gate) * up in bf16, or with FP8
// e4m3(gelu_tanh(gate) * up * inverse_scale), saturating (with INT8 too:
// products of two normal values have tails too long for integers). Rows of out from `rows` on are not written.
//
// The rows of weights are in the order of engine/weights/wide_layout.gated_order: eight gates and the eight ups of the same hidden columns
// alternate, so that a thread holds both, and the columns that a thread finishes are neighbours by eight.
//
// At 576 rows, width 16384, K 2048: 77 GFLOP (53 us in e4m3 at 1450 TFLOP/s, 99 us in bf16 at 780), 67 or 134 MB of weights.
//
// Any grid of blocks of 128 * WARPGROUPS + 32 threads; one a multiprocessor is meant. steps is K over 128 bytes, rounded up. width
// is a multiple of 32. Maps with 128-byte swizzle have boxes of 128 bytes by TILE_M and by TILE_N rows. Shared memory:
// STAGES * ((TILE_M + TILE_N) * 128 + 16) bytes, with FP8 another (STAGES + 1) * TILE_N * 4.
#include "pipeline_sm90.cuh"

#if FP8
using Hidden = __nv_fp8_e4m3;
#else
using Hidden = bf16;
#endif

// 2 * gelu_tanh(gate) * up
__device__ __forceinline__ float twice_gated(float gate, float up) {
  float inner = gate * fmaf(gate * gate, 0.044715f * 0.7978845608028654f, 0.7978845608028654f);
  return fmaf(gate, fast_tanh(inner), gate) * up;
}

// Eight neighbouring columns of a row.
#if FP8
__device__ __forceinline__ uint2 packed(const float (&v)[4][2]) {
  return make_uint2(e4m3x4(v[0][0], v[0][1], v[1][0], v[1][1]), e4m3x4(v[2][0], v[2][1], v[3][0], v[3][1]));
}
#else
__device__ __forceinline__ uint4 packed(const float (&v)[4][2]) {
  return make_uint4(pack_bf16(v[0][0], v[0][1]), pack_bf16(v[1][0], v[1][1]), pack_bf16(v[2][0], v[2][1]),
                    pack_bf16(v[3][0], v[3][1]));
}
#endif

// Two values of shared memory, not before they are used: registers are scarce.
__device__ __forceinline__ float2 load_pair(const float* values) {
  float2 pair;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(shared_address(values)) : "memory");
  return pair;
}

// A thread's part of two rows, eight hidden columns at a time.
__device__ __forceinline__ void finish(const Sum (&acc)[TILES][4], const Piece& piece, const float* scales, Hidden* out,
                                       float half_inverse_scale, int rows, int width) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int row = piece.row + warp * 16 + lane / 4, column = piece.column / 2 + lane % 4 * 8;
  Hidden* target = out + (size_t)row * width + column;
#pragma unroll
  for (int group = 0; group < TILES / 8; group++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float hidden[4][2];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int t = group * 8 + 2 * i;
        float2 gate_scale = make_float2(1, 1), up_scale = make_float2(1, 1);
#if FP8
        gate_scale = load_pair(scales + t * 8 + lane % 4 * 2);
        up_scale = load_pair(scales + t * 8 + 8 + lane % 4 * 2);
#endif
        const Sum *gate = acc[t] + 2 * half, *up = acc[t + 1] + 2 * half;
        hidden[i][0] = twice_gated(gate[0] * gate_scale.x, up[0] * (up_scale.x * half_inverse_scale));
        hidden[i][1] = twice_gated(gate[1] * gate_scale.y, up[1] * (up_scale.y * half_inverse_scale));
      }
      auto eight = packed(hidden);
      if (row + half * 8 < rows && column + group * 32 < width)
        *reinterpret_cast<decltype(eight)*>(target + (size_t)half * 8 * width + group * 32) = eight;
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gated_gemm(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float* channel_scale,
               Hidden* out, float inverse_scale, int rows, int width, int steps) {
  extern __shared__ __align__(1024) uint8_t shared[];
  Ring ring(shared);
  if (threadIdx.x == CONSUMERS) prefetch_map(a), prefetch_map(b);
  ring.prepare();
  release_successor();
  Schedule schedule(rows, 2 * width, steps, 1);
  run_pieces(ring, {a, b, channel_scale}, schedule,
             [&](const Sum(&acc)[TILES][4], const Piece& piece, const float* scales) {
               finish(acc, piece, scales, out, 0.5f * inverse_scale, rows, width);
             });
}
