// A product in parts of K, for many rows on Hopper: what follows adds the parts up.
// Architectures: 90a
//
// a [rows, K] and weights [columns, K] in bf16, e4m3 with FP8, signed integers with FP8 and INT8.
// out bf16 [parts, rows, columns]: out[p] = a * weights^T over the p-th of `parts` ranges of K, unscaled.
//
// The rows of weights are in the order of engine/weights/wide_layout.lane_order, so that eight columns which a thread finishes lie side by
// side. Parts exist so that a product of few tiles occupies all multiprocessors; summing them in a fixed order elsewhere costs less
// than atomic additions here and keeps results the same from run to run.
//
// At 576 rows, 2048 columns, K 16384: 39 GFLOP (27 us in e4m3 at 1450 TFLOP/s, 50 us in bf16 at 780), 34 or 67 MB of weights.
//
// Launched as gated_gemm; columns is a multiple of 32.
#include "pipeline_sm90.cuh"

// A thread's part of two rows, eight columns at a time.
__device__ __forceinline__ void finish(const Sum (&acc)[TILES][4], const Piece& piece, bf16* out, int rows, int columns) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int row = piece.row + warp * 16 + lane / 4, column = piece.column + lane % 4 * 8;
  bf16* target = out + ((size_t)piece.part * rows + row) * columns + column;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (row + half * 8 >= rows) continue;
#pragma unroll
    for (int t = 0; t < TILES; t += 4) {
      if (column + t * 8 >= columns) continue;
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; i++) words[i] = pack_bf16(acc[t + i][2 * half], acc[t + i][2 * half + 1]);
      *reinterpret_cast<uint4*>(target + (size_t)half * 8 * columns + t * 8) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    split_gemm(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, bf16* out, int rows, int columns,
               int steps, int parts) {
  extern __shared__ __align__(1024) uint8_t shared[];
  Ring ring(shared);
  if (threadIdx.x == CONSUMERS) prefetch_map(a), prefetch_map(b);
  ring.prepare();
  release_successor();
  Schedule schedule(rows, columns, steps, parts);
  run_pieces(ring, {a, b, nullptr}, schedule,
             [&](const Sum(&acc)[TILES][4], const Piece& piece, const float*) { finish(acc, piece, out, rows, columns); });
}
