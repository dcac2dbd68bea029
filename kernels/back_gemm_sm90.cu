// A gradient of at most 64 rows times a weight as it is, in parts of K, on Hopper: what follows adds the parts up.
// Architectures: 90a
//
// a bf16 [64, K] (gradient of a product's result), weights bf16 [K, columns] (the product's own [out, in]); K and columns are
// multiples of 64. out bf16 [parts, 64, columns]: out[p] = a * weights over the p-th of `parts` equal ranges of K, each of
// `steps` * 64, steps at most 16.
//
// With GATED, weights are those of the down projection and what leaves is the gradient of gate and up before the GELU
// (activation.cu, gelu_gate_backward), in one part: out, x bf16 [64, 2 * columns], gate before up. x is read, and what
// comes of it computed, before the wait: between the kernel that wrote it and this one lies a product that started after it had ended.
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

#ifndef GATED
#define GATED 0
#endif

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

// What a thread's sums become gradients by: [tile][half], two neighbouring columns each; of the gate, and of up.
struct Slopes {
  float gates[8][2][2], ups[8][2][2];
};

// x: of the thread's first element. The values are there when this returns: it is called before the wait.
__device__ __forceinline__ void load_slopes(Slopes& slopes, const bf16* x, int columns) {
#pragma unroll
  for (int t = 0; t < 8; t++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const bf16* place = x + (size_t)half * 16 * columns + t * 8;
      const float2 gate = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(place));
      const float2 up = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(place + columns));
      const float2 first = gelu_with_slope(gate.x), second = gelu_with_slope(gate.y);
      slopes.gates[t][half][0] = up.x * first.y, slopes.gates[t][half][1] = up.y * second.y;
      slopes.ups[t][half][0] = first.x, slopes.ups[t][half][1] = second.x;
    }
  }
#pragma unroll
  for (int i = 0; i < 32; i++) {  // the compiler may not put it off
    asm volatile("" : "+f"(slopes.gates[i / 4][i / 2 % 2][i % 2]));
    asm volatile("" : "+f"(slopes.ups[i / 4][i / 2 % 2][i % 2]));
  }
}

__device__ __forceinline__ void store_gates(bf16* out, const Slopes& slopes, const float (&result)[8][4], int columns) {
#pragma unroll
  for (int t = 0; t < 8; t++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float g = result[t][half * 2], h = result[t][half * 2 + 1];
      const float *gates = slopes.gates[t][half], *ups = slopes.ups[t][half];
      bf16* place = out + (size_t)half * 16 * columns + t * 8;
      *reinterpret_cast<uint32_t*>(place) = pack_bf16(g * gates[0], h * gates[1]);
      *reinterpret_cast<uint32_t*>(place + columns) = pack_bf16(g * ups[0], h * ups[1]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + 32, 1)
    back_gemm(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap weights, bf16* out, int columns, int steps,
              const bf16* x) {
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
  const int row = warp * 16 + lane / 4, column = blockIdx.x * BOX + lane % 4 * 2;
  Slopes slopes;
  if (GATED) load_slopes(slopes, x + (size_t)row * 2 * columns + column, columns);
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
  if (GATED) {
    store_gates(out + (size_t)row * 2 * columns + column, slopes, result, columns);
    return;
  }
  bf16* target = out + ((size_t)blockIdx.y * 64 + row) * columns + column;
#pragma unroll
  for (int t = 0; t < 8; t++) {
    *reinterpret_cast<uint32_t*>(target + t * 8) = pack_bf16(result[t][0], result[t][1]);
    *reinterpret_cast<uint32_t*>(target + (size_t)8 * columns + t * 8) = pack_bf16(result[t][2], result[t][3]);
  }
}
