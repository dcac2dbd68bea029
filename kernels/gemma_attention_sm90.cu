// The attention of gemma_attention.cu for Hopper: the same contract, on warpgroup matrix instructions.
// Architectures: 90a
//
// queries bf16 [rows, HEADS * 256] (after RoPE, unscaled); keys, values bf16 [capacity, 256]; out as queries, in bf16 or
// with FP8 e4m3(value * inverse_scale). Every query sees the keys 0 .. *length + appended - 1; query row 0 sees only
// *length + first_sees when first_sees is not negative. Keys beyond are never used but must be finite; capacity is a
// multiple of 64. Logits and softmax in fp32, probabilities rounded to bf16 for the product with the values.
//
// One block takes 64 of the rows * HEADS queries and has two warpgroups of 128 threads. They take alternating tiles of
// 64 keys, each with tiles of its own: two for keys, one for values. So one warpgroup's softmax runs under the other's
// products. Results are merged at the end.
//
// Shared tiles are [4][64 rows][128 bytes], a quarter of the 256 columns each, in the 128-byte swizzle of wgmma.
#ifndef HEADS
#define HEADS 8
#endif
#ifndef FP8
#define FP8 0
#endif
#include "attention.cuh"
#include "wgmma.cuh"

constexpr int DIM = 256;
constexpr int KEYS = 64;
constexpr int QUERIES = 64;
constexpr int TILE = KEYS * DIM;        // elements
constexpr int QUARTER = KEYS * 64;      // elements of a tile's quarter
constexpr int KEY_TILES = KEYS / 8;
constexpr int DIM_TILES = DIM / 8;

// Start copying 64 rows into a swizzled tile; rows from `valid` on become zero.
__device__ __forceinline__ void copy_tile(bf16* tile, const bf16* source, int valid, int thread, int threads) {
  for (int i = thread; i < 64 * DIM / 8; i += threads) {
    int row = i / (DIM / 8), group = i % (DIM / 8);
    bf16* target = tile + group / 8 * QUARTER + row * 64 + ((group % 8) ^ (row % 8)) * 8;
    if (row < valid)
      copy_async(target, source + (size_t)row * DIM + group * 8);
    else
      *reinterpret_cast<uint4*>(target) = make_uint4(0, 0, 0, 0);
  }
}

// All copies but the last `PENDING` groups have arrived and the tensor cores may read them.
template <int PENDING>
__device__ __forceinline__ void publish_copies(int group) {
  wait_copies<PENDING>();
  fence_shared_for_tensor_cores();
  asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}

// logits [64 queries, 64 keys] = queries * keys^T
__device__ __forceinline__ void multiply_keys(float (&logits)[KEY_TILES][4], const bf16* queries, const bf16* keys) {
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < DIM / 16; k++) {
    int offset = k / 4 * QUARTER + k % 4 * 16;
    wgmma_bf16(logits, swizzled_rows(queries + offset), swizzled_rows(keys + offset), k > 0);
  }
  wgmma_commit();
}

// result [64 queries, 256] += probabilities [64 queries, 64 keys] * values
__device__ __forceinline__ void multiply_values(float (&result)[DIM_TILES][4], const float (&p)[KEY_TILES][4],
                                                const bf16* values) {
  uint32_t a[KEY_TILES / 2][4];
#pragma unroll
  for (int t = 0; t < KEY_TILES; t += 2) as_operand(a[t / 2], p, t);
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++)
    wgmma_bf16_transposed(result, a[k], swizzled_columns(values + k * 16 * 64, QUARTER * sizeof(bf16)));
  wgmma_commit();
  wgmma_wait<0>();
}

extern "C" __global__ void __launch_bounds__(256, 1)
    gemma_attention(const bf16* queries, const bf16* keys, const bf16* values, const int* length, int appended,
                    int first_sees, int rows, Output* out, float inverse_scale) {
  extern __shared__ __align__(1024) uint8_t shared[];
  bf16* query_tile = reinterpret_cast<bf16*>(shared);
  int group = threadIdx.x / 128, thread = threadIdx.x % 128, warp = thread / 32, lane = threadIdx.x % 32;
  bf16* key_tiles = query_tile + TILE * (1 + 3 * group);
  bf16* value_tile = key_tiles + 2 * TILE;
  wait_for_predecessor();
  release_successor();
  int total = *length + appended, tiles = (total + KEYS - 1) / KEYS, first = blockIdx.x * QUERIES;
  copy_tile(query_tile, queries + (size_t)first * DIM, rows * HEADS - first, threadIdx.x, 256);
  if (group < tiles) copy_tile(key_tiles, keys + (size_t)group * TILE, KEYS, thread, 128);
  commit_copies();
  if (group < tiles) copy_tile(value_tile, values + (size_t)group * TILE, KEYS, thread, 128);
  commit_copies();
  wait_copies<1>();
  fence_shared_for_tensor_cores();
  __syncthreads();  // the queries were copied by both groups

  int limit[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int query = first + warp * 16 + lane / 4 + h * 8;
    limit[h] = first_sees >= 0 && query < HEADS ? *length + first_sees : total;
  }
  float result[DIM_TILES][4] = {};
  Softmax state;
#pragma unroll 1
  for (int tile = group, turn = 0; tile < tiles; tile += 2, turn ^= 1) {
    publish_copies<1>(group);  // this tile's keys; its values may be under way
    float logits[KEY_TILES][4];
    multiply_keys(logits, query_tile, key_tiles + turn * TILE);
    if (tile + 2 < tiles) copy_tile(key_tiles + (turn ^ 1) * TILE, keys + (size_t)(tile + 2) * TILE, KEYS, thread, 128);
    commit_copies();
    wgmma_wait<0>();
    int seen[2] = {limit[0] - tile * KEYS, limit[1] - tile * KEYS};
    exponentiate(logits, result, state, seen, rsqrtf((float)DIM) * LOG2_E, lane);
    publish_copies<1>(group);  // this tile's values
    multiply_values(result, logits, value_tile);
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
    if (tile + 2 < tiles) copy_tile(value_tile, values + (size_t)(tile + 2) * TILE, KEYS, thread, 128);
    commit_copies();
  }
#pragma unroll
  for (int h = 0; h < 2; h++) state.sum[h] = quad_sum(state.sum[h]);
  wait_copies<0>();
  merge_groups(result, state, reinterpret_cast<float*>(query_tile), group, thread);
  if (group == 1) return;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int query = first + warp * 16 + lane / 4 + h * 8;
    if (query >= rows * HEADS) continue;
    float factor = 1.0f / state.sum[h];
#pragma unroll
    for (int t = 0; t < DIM_TILES; t++)
      store_pair(out + (size_t)query * DIM + t * 8 + lane % 4 * 2, result[t][2 * h] * factor, result[t][2 * h + 1] * factor,
                 inverse_scale);
  }
}
