// Gemma's MLP up to its hidden layer, for many rows on Hopper: gate and up product, GELU and rounding in one kernel.
// Architectures: 90a
//
// a [rows, K] and weights [2 * width, K] in bf16, or e4m3 with FP8; channel_scale fp32 [2 * width], null in bf16.
// gate, up = (a * weights^T) * channel_scale; out [rows, width] = gelu_tanh(gate) * up in bf16, or with FP8
// e4m3(gelu_tanh(gate) * up * inverse_scale), saturating. Rows of out from `rows` on are not written.
//
// The rows of weights are in the order of engine/wide_layout.gated_order: eight gates and the eight ups of the same hidden columns
// alternate, so that a thread holds both, and the columns that a thread finishes are 16 bytes of a row of out.
//
// At 576 rows, width 16384, K 2048: 77 GFLOP (53 us in e4m3 at 1450 TFLOP/s, 99 us in bf16 at 780), 67 or 134 MB of weights.
//
// grid: blocks, a multiple of ACROSS; cluster ACROSS; 288 threads. steps is K over 128 bytes, rounded up. width is a multiple of
// TILE_N * ACROSS / 2. Maps with 128-byte swizzle have boxes of 128 bytes by 128 / ACROSS and by TILE_N rows. Shared memory:
// STAGES * (128 + TILE_N) * 128, with FP8 another 8 * TILE_N, and 16 * STAGES bytes.
#include "pipeline_sm90.cuh"

#if FP8
using Output = __nv_fp8_e4m3;
#else
using Output = bf16;
#endif

constexpr int GROUP = 16 / sizeof(Output);  // hidden columns in 16 bytes

// 2 * gelu_tanh(gate) * up
__device__ __forceinline__ float twice_gated(float gate, float up) {
  float inner = gate * fmaf(gate * gate, 0.044715f * 0.7978845608028654f, 0.7978845608028654f);
  return fmaf(gate, fast_tanh(inner), gate) * up;
}

// A thread's part of two rows, GROUP hidden columns at a time.
__device__ __forceinline__ void finish(const float (&acc)[TILES][4], const Piece& piece, const float* scales, Output* out,
                                       float half_inverse_scale, int rows, int width) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int row = piece.row + warp * 16 + lane / 4;
  Output* target = out + (size_t)row * width + piece.column / 2 + lane % 4 * GROUP;
#pragma unroll
  for (int group = 0; group < TILES / GROUP; group++) {
    uint32_t words[2][4];
#pragma unroll
    for (int i = 0; i < GROUP / 2; i++) {
      int t = group * GROUP + 2 * i;
      float2 gate_scale = make_float2(1, 1), up_scale = make_float2(half_inverse_scale, half_inverse_scale);
#if FP8
      gate_scale = *reinterpret_cast<const float2*>(scales + t * 8 + lane % 4 * 2);
      up_scale = *reinterpret_cast<const float2*>(scales + t * 8 + 8 + lane % 4 * 2);
      up_scale.x *= half_inverse_scale, up_scale.y *= half_inverse_scale;
#endif
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float first = twice_gated(acc[t][2 * half] * gate_scale.x, acc[t + 1][2 * half] * up_scale.x);
        float second = twice_gated(acc[t][2 * half + 1] * gate_scale.y, acc[t + 1][2 * half + 1] * up_scale.y);
#if FP8
        uint32_t pair = __nv_cvt_float2_to_fp8x2(make_float2(first, second), __NV_SATFINITE, __NV_E4M3);
        words[half][i / 2] = i % 2 ? words[half][i / 2] | pair << 16 : pair;
#else
        words[half][i] = pack_bf16(first, second);
#endif
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
      if (row + half * 8 < rows)
        *reinterpret_cast<uint4*>(target + (size_t)half * 8 * width + group * 4 * GROUP) =
            make_uint4(words[half][0], words[half][1], words[half][2], words[half][3]);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gated_gemm(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float* channel_scale,
               Output* out, float inverse_scale, int rows, int width, int steps) {
  extern __shared__ __align__(1024) uint8_t shared[];
  Ring ring(shared);
  if (threadIdx.x == CONSUMERS) prefetch_map(a), prefetch_map(b);
  ring.prepare();
  release_successor();
  Schedule schedule(rows, 2 * width, steps, 1);
  run_pieces(ring, {a, b, channel_scale}, schedule, rows,
             [&](const float(&acc)[TILES][4], const Piece& piece, const float* scales) {
               finish(acc, piece, scales, out, 0.5f * inverse_scale, rows, width);
             });
}
