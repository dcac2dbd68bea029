// Attention of HEADS query heads on one key/value head (Gemma 2B and 300M: 8 heads of 256), with a length on the device.
// Architectures: 80 86 89 90a 100 110 120
//
// queries bf16 [rows, HEADS * DIM] (after RoPE, unscaled); keys, values bf16 [capacity, DIM]; out bf16 [rows, HEADS * DIM], or
// with FP8 e4m3(value * inverse_scale). Every query sees the keys 0 .. *length + appended - 1, except that query row 0 sees
// only *length + first_sees when first_sees is not negative (pi0's state token does not see the actions after it).
// Keys beyond are never used, whatever they hold as long as it is finite; capacity is a multiple of KEYS and at least the
// length rounded up to KEYS. Logits and softmax in fp32, probabilities rounded to bf16 for the product with the values.
// log_sums: fp32 [rows, HEADS] for log2 of each sum of exponentials, or null.
//
// One block takes 64 of the rows * HEADS queries (grid: that number over 64, rounded up) and 256 threads: four warps of 16
// queries, twice; the two sets of four take alternating tiles of KEYS keys and merge their results at the end.
// Shared memory: SHARED_BYTES. STAGES 2 overlaps loading with arithmetic; 1 fits GPUs with 99 KB a block.

#ifndef HEADS
#define HEADS 8
#endif
#ifndef DIM
#define DIM 256
#endif
#ifndef STAGES
#define STAGES 2
#endif

#include "attention.cuh"

constexpr int KEYS = 32;
constexpr int QUERIES = 64;
constexpr int STRIDE = DIM + 8;
constexpr int KEY_TILES = KEYS / 8;
constexpr int DIM_TILES = DIM / 8;
constexpr int TILE = KEYS * STRIDE;
constexpr int GROUPS = 2;

__device__ __forceinline__ void group_barrier(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }

extern "C" __global__ void __launch_bounds__(256, 1)
    gemma_attention(const bf16* queries, const bf16* keys, const bf16* values, const int* length, int appended,
                    int first_sees, int rows, Output* out, float inverse_scale, float* log_sums) {
  extern __shared__ __align__(128) uint8_t shared[];
  bf16* query_tile = reinterpret_cast<bf16*>(shared);
  int group = threadIdx.x / 128, thread = threadIdx.x % 128, warp = thread / 32, lane = threadIdx.x % 32;
  bf16* own = query_tile + QUERIES * STRIDE + group * STAGES * 2 * TILE;  // STAGES pairs of a key and a value tile
  wait_for_predecessor();
  release_successor();
  int total = *length + appended, tiles = (total + KEYS - 1) / KEYS;
  int first = blockIdx.x * QUERIES;
  load_rows<DIM, STRIDE>(query_tile, queries + (size_t)first * DIM, QUERIES, rows * HEADS - first, threadIdx.x, 256);

  auto load_tile = [&](int tile) {
    bf16* target = own + (tile / GROUPS) % STAGES * 2 * TILE;
    load_rows<DIM, STRIDE>(target, keys + (size_t)tile * KEYS * DIM, KEYS, KEYS, thread, 128);
    load_rows<DIM, STRIDE>(target + TILE, values + (size_t)tile * KEYS * DIM, KEYS, KEYS, thread, 128);
  };
  if (group < tiles) load_tile(group);
  commit_copies();
  wait_copies<0>();
  __syncthreads();

  int limit[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int query = first + warp * 16 + lane / 4 + h * 8;
    limit[h] = first_sees >= 0 && query < HEADS ? *length + first_sees : total;
  }
  float result[DIM_TILES][4] = {};
  Softmax state;
#pragma unroll 1
  for (int tile = group; tile < tiles; tile += GROUPS) {
    if (STAGES > 1) {
      if (tile + GROUPS < tiles) load_tile(tile + GROUPS);
      commit_copies();
      wait_copies<1>();
      group_barrier(group);
    }
    const bf16* key_tile = own + (tile / GROUPS) % STAGES * 2 * TILE;
    float logits[KEY_TILES][4] = {};
    multiply_keys<DIM, STRIDE>(logits, query_tile + warp * 16 * STRIDE, key_tile, lane);
    int seen[2] = {limit[0] - tile * KEYS, limit[1] - tile * KEYS};
    exponentiate(logits, result, state, seen, rsqrtf((float)DIM) * LOG2_E, lane);
    multiply_values<STRIDE>(result, logits, key_tile + TILE, lane);
    group_barrier(group);
    if (STAGES == 1 && tile + GROUPS < tiles) {
      load_tile(tile + GROUPS);
      commit_copies();
      wait_copies<0>();
      group_barrier(group);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) state.sum[h] = quad_sum(state.sum[h]);
  merge_groups(result, state, reinterpret_cast<float*>(query_tile), group, thread);
  if (group == 1) return;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int query = first + warp * 16 + lane / 4 + h * 8;
    if (query >= rows * HEADS) continue;
    float factor = 1.0f / state.sum[h];
    if (log_sums && lane % 4 == 0) log_sums[query] = state.top[h] + log2f(state.sum[h]);
#pragma unroll
    for (int t = 0; t < DIM_TILES; t++)
      store_pair(out + (size_t)query * DIM + t * 8 + lane % 4 * 2, result[t][2 * h] * factor, result[t][2 * h + 1] * factor,
                 inverse_scale);
  }
}
