// A gradient of at most 64 rows times a weight as it is, in parts of K, on Hopper: what follows adds the parts up.
// Architectures: 90a
//
// a bf16 [64, K] (gradient of a product's result), weights bf16 [K, columns] (the product's own [out, in]); K and columns are
// multiples of 64. out bf16 [parts, 64, columns]: out[p] = a * weights over the p-th of `parts` equal ranges of K, each of
// `steps` * 64, steps at most 16.
//
// A block takes 64 columns and one range: all of its weights, at most 128 KB, fit into shared memory and are asked for before
// the wait for the kernel in front, so that they stream while that one still works. Then a comes through a ring of eight
// boxes. Operand b runs along N as it lies in memory (wgmma reads it transposed), so no copy of the weights is needed.
// Parts in bf16 and in a fixed order: the same bits at every run.
//
// Grid (columns / 64, parts), 160 threads: one warpgroup multiplies, a warp fetches. Maps: boxes of 64 rows by 64 columns with
// the 128-byte swizzle. Dynamic shared memory: steps + min(steps, 8) boxes of 8 KB, and 1 KB.
// Gate and up of the action expert (K 8192, 1024 columns): 16.8 MB, 5.6 us at 3 TB/s; arithmetic 1.1 us a block.
#include "attention_sm90.cuh"

constexpr int BOX = 64, BOX_BYTES = BOX * 128, RING = 8, MOST_STEPS = 16, CONSUMERS = 128;

struct Barriers {
  uint64_t weights[MOST_STEPS], full[RING], empty[RING];
};

// d [64, 64] = a [64, 16] * b [16, 64], both in shared memory, rows of b along N (+ d)
__device__ __forceinline__ void multiply_box(float (&d)[8][4], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(PRODUCT("64", PLACES_0_31, "%32, %33", "0, 1", "%34")
               : TILES_8(d, 0)
               : "l"(a), "l"(b), "r"((int)accumulate));
}

// By one thread.
__device__ __forceinline__ void fetch(const TensorMap& a, const TensorMap& weights, uint8_t* boxes, Barriers& barriers, int steps) {
  const int first = blockIdx.y * steps;
  uint8_t* ring = boxes + steps * BOX_BYTES;
  for (int i = 0; i < steps; i++) {
    barrier_expect(barriers.weights + i, BOX_BYTES);
    copy_box(boxes + i * BOX_BYTES, weights, blockIdx.x * BOX, (first + i) * BOX, barriers.weights + i);
  }
  wait_for_predecessor();
  release_successor();
  for (int i = 0; i < steps; i++) {
    const int slot = i % RING;
    if (i >= RING) barrier_wait(barriers.empty + slot, (i / RING - 1) & 1);
    barrier_expect(barriers.full + slot, BOX_BYTES);
    copy_box(ring + slot * BOX_BYTES, a, (first + i) * BOX, 0, barriers.full + slot);
  }
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + 32, 1)
    back_gemm(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap weights, bf16* out, int columns, int steps) {
  extern __shared__ uint8_t raw_memory[];
  __shared__ Barriers barriers;
  uint8_t* boxes = raw_memory + (1024 - shared_address(raw_memory) % 1024) % 1024;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    prefetch_map(a), prefetch_map(weights);
    for (int i = 0; i < steps; i++) barrier_init(barriers.weights + i, 1);
    for (int i = 0; i < RING; i++) barrier_init(barriers.full + i, 1), barrier_init(barriers.empty + i, CONSUMERS / 32);
    barrier_init_done();
  }
  __syncthreads();
  if (warp == CONSUMERS / 32) {
    if (lane == 0) fetch(a, weights, boxes, barriers, steps);
    return;
  }
  wait_for_predecessor();
  release_successor();
  float result[8][4];
  const uint8_t* ring = boxes + steps * BOX_BYTES;
#pragma unroll 1
  for (int i = 0; i < steps; i++) {
    const int slot = i % RING;
    barrier_wait(barriers.weights + i, 0);
    barrier_wait(barriers.full + slot, i / RING & 1);
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < 4; k++)
      multiply_box(result, swizzled_rows(ring + slot * BOX_BYTES + k * 32), swizzled_columns(boxes + i * BOX_BYTES + k * 16 * 128, 0),
                   i + k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    warp_done(barriers.empty + slot, lane);
  }
  bf16* target = out + ((size_t)blockIdx.y * 64 + warp * 16 + lane / 4) * columns + blockIdx.x * BOX + lane % 4 * 2;
#pragma unroll
  for (int t = 0; t < 8; t++) {
    *reinterpret_cast<uint32_t*>(target + t * 8) = pack_bf16(result[t][0], result[t][1]);
    *reinterpret_cast<uint32_t*>(target + (size_t)8 * columns + t * 8) = pack_bf16(result[t][2], result[t][3]);
  }
}
