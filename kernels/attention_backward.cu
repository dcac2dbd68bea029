// The way back through Gemma's attention (gemma_attention.cu): from the gradient of its result to that of q, k and v.
// Architectures: 80 86 89 90a 100 110 120
//
// HEADS query heads on one key/value head. Keys 0 .. fixed - 1 are constant, fixed = *length + constant; `rows` keys of the
// queries themselves follow. Every query sees all of them. With p the probabilities, u the gradient of the result:
//   dp = u v^T,   ds = p * (dp - sum(p * dp)) / sqrt(DIM),   dq = ds k,   dk = ds^T q,   dv = p^T u
// where dk and dv are those of the last `rows` keys.
//
// Two kernels:
//   attention_pull       ds, and what each tile of keys adds to dq, each tile of queries to dk and dv
//   attention_gradients  adds these up, turns dq and dk back (rope.cu), and writes them as the gradient of the raw product
// The forward pass has left its result and its sums, so that no block has to know what others find: with `attended` the
// result, sum(p * dp) is the product of a row of it and of u.
// queries, attended, upstream bf16 [rows, HEADS * DIM] (queries after RoPE, unscaled); log_sums fp32 [rows][HEADS], log2 of the sum of
// exponentials; keys, values bf16 [capacity, DIM], the capacity a multiple of KEYS and what lies behind the last key
// finite; out bf16 [rows, (HEADS + 2) * DIM].
// Between the kernels, fp32: query_parts [splits][rows * HEADS][DIM], key_parts and value_parts [tiles][rows][DIM]; tiles of
// QUERIES flat queries row * HEADS + head, splits of KEYS keys. Sums in a fixed order: the same bits at every run.
//
// Rounded to bf16: p and ds. DIM is a multiple of 32, at least 64. Grids (tiles, splits) of 128 threads with 192 * (DIM + 8) * 2
// bytes of dynamic shared memory (99 KB at 256); grid (rows, HEADS + 2) of DIM / 2 threads.
// All but upstream is read before the wait: between the kernel that wrote it and this one lies a product that
// started after it had ended.
// 50 rows, 612 keys: 0.5 GFLOP and 15 MB from the second-level cache; what decides is two launches in a row.
#include "attention.cuh"

#ifndef HEADS
#define HEADS 8
#endif
#ifndef DIM
#define DIM 256
#endif

constexpr int QUERIES = 32, KEYS = 64, STRIDE = DIM + 8, WEIGHTS_STRIDE = KEYS + 8, HALF = DIM / 2;
constexpr int KEY_TILES = KEYS / 2 / 8;  // of a warp

// Start copying rows of DIM values; zeros beyond `valid`.
__device__ __forceinline__ void load_rows(bf16* target, const bf16* source, int rows, int valid) {
  for (int i = threadIdx.x; i < rows * DIM / 8; i += blockDim.x) {
    int row = i / (DIM / 8), d = i % (DIM / 8) * 8;
    if (row < valid)
      copy_async(target + row * STRIDE + d, source + (size_t)row * DIM + d);
    else
      *reinterpret_cast<uint4*>(target + row * STRIDE + d) = make_uint4(0, 0, 0, 0);
  }
}

// c[16 x 32] = a[16][DIM] b[32][DIM]^T, both rows in shared memory.
__device__ __forceinline__ void multiply_rows(float (&c)[KEY_TILES][4], const bf16* a_rows, const bf16* b_rows, int lane) {
#pragma unroll
  for (int t = 0; t < KEY_TILES; t++) c[t][0] = c[t][1] = c[t][2] = c[t][3] = 0;
#pragma unroll 4
  for (int k = 0; k < DIM; k += 16) {
    uint32_t a[4];
    load_matrices(a, a_rows + (lane % 16) * STRIDE + k + lane / 16 * 8);
#pragma unroll
    for (int t = 0; t < KEY_TILES; t += 2) {
      uint32_t b[4];
      load_matrices(b, b_rows + (t * 8 + lane / 16 * 8 + lane % 8) * STRIDE + k + lane / 8 % 2 * 8);
      mma(c[t], a, b[0], b[1]);
      mma(c[t + 1], a, b[2], b[3]);
    }
  }
}

// A warp's place in a tile: 16 queries and 32 keys.
struct Place {
  int lane, query, key;
  __device__ Place() : lane(threadIdx.x % 32), query(threadIdx.x / 64 * 16), key(threadIdx.x / 32 % 2 * (KEYS / 2)) {}
  __device__ int row(int half) const { return blockIdx.x * QUERIES + query + lane / 4 + half * 8; }  // flat query
  __device__ int column(int tile) const { return blockIdx.y * KEYS + key + tile * 8 + lane % 4 * 2; }
};

// What this tile of queries adds to the gradient of 16 keys: weights[QUERIES][keys]^T rows[QUERIES][DIM]. first: of the warp's
// keys among the last ones; may be negative.
__device__ __forceinline__ void add_keys(float* parts, const bf16* weights, const bf16* rows_tile, int first, int rows, int lane) {
  uint32_t a[QUERIES / 16][4];
#pragma unroll
  for (int k = 0; k < QUERIES / 16; k++)
    load_matrices_transposed(a[k], weights + (k * 16 + lane / 16 * 8 + lane % 8) * WEIGHTS_STRIDE + lane / 8 % 2 * 8);
#pragma unroll 2
  for (int d = 0; d < DIM; d += 32) {
    float c[4][4] = {};
#pragma unroll
    for (int k = 0; k < QUERIES / 16; k++) {
#pragma unroll
      for (int t = 0; t < 4; t += 2) {
        uint32_t b[4];
        load_matrices_transposed(b, rows_tile + (k * 16 + lane % 16) * STRIDE + d + t * 8 + lane / 16 * 8);
        mma(c[t], a[k], b[0], b[1]);
        mma(c[t + 1], a[k], b[2], b[3]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int key = first + lane / 4 + half * 8;
      if (key < 0 || key >= rows) continue;
      float* target = parts + ((size_t)blockIdx.x * rows + key) * DIM + d + lane % 4 * 2;
#pragma unroll
      for (int t = 0; t < 4; t++) *reinterpret_cast<float2*>(target + t * 8) = make_float2(c[t][half * 2], c[t][half * 2 + 1]);
    }
  }
}

// What this tile of keys adds to the gradient of a warp's 16 queries, in half of the columns.
__device__ __forceinline__ void add_queries(float* parts, const bf16* weights, const bf16* key_tile, const Place& place, int count) {
  const int first = place.key / (KEYS / 2) * HALF, lane = place.lane;
  uint32_t a[KEYS / 16][4];
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++)
    load_matrices(a[k], weights + (place.query + lane % 16) * WEIGHTS_STRIDE + k * 16 + lane / 16 * 8);
#pragma unroll 4
  for (int d = first; d < first + HALF; d += 16) {
    float c[2][4] = {};
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
      uint32_t b[4];
      load_matrices_transposed(b, key_tile + (k * 16 + lane % 16) * STRIDE + d + lane / 16 * 8);
      mma(c[0], a[k], b[0], b[1]);
      mma(c[1], a[k], b[2], b[3]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if (place.row(half) >= count) continue;
      float* target = parts + ((size_t)blockIdx.y * count + place.row(half)) * DIM + d + lane % 4 * 2;
#pragma unroll
      for (int t = 0; t < 2; t++) *reinterpret_cast<float2*>(target + t * 8) = make_float2(c[t][half * 2], c[t][half * 2 + 1]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(128)
    attention_pull(const bf16* queries, const bf16* keys, const bf16* values, const bf16* attended, const float* log_sums,
                   const bf16* upstream, const int* length, int constant, int rows, float* query_parts, float* key_parts,
                   float* value_parts) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ float row_means[QUERIES];
  bf16 *query_tile = reinterpret_cast<bf16*>(shared), *upstream_tile = query_tile + QUERIES * STRIDE;
  bf16 *key_tile = upstream_tile + QUERIES * STRIDE, *value_tile = key_tile + KEYS * STRIDE;
  bf16 *slopes = value_tile, *probabilities = slopes + QUERIES * WEIGHTS_STRIDE;  // behind the use of the values
  const Place place;
  const int lane = place.lane, count = rows * HEADS, first_query = blockIdx.x * QUERIES;
  release_successor();
  const int fixed = *length + constant, total = fixed + rows;
  if ((int)blockIdx.y * KEYS >= total) return;
  load_rows(query_tile, queries + (size_t)first_query * DIM, QUERIES, count - first_query);
  load_rows(key_tile, keys + (size_t)blockIdx.y * KEYS * DIM, KEYS, KEYS);
  commit_copies();
  load_rows(value_tile, values + (size_t)blockIdx.y * KEYS * DIM, KEYS, KEYS);
  commit_copies();
  // four threads a row: the pieces of 8 values that each multiplies with the gradient
  constexpr int PIECES = DIM / 8 / 4;
  const int mean_row = threadIdx.x / 4, piece = threadIdx.x % 4;
  uint4 results[PIECES];
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    const bf16* at = attended + (size_t)(first_query + mean_row) * DIM + (piece + 4 * i) * 8;
    results[i] = first_query + mean_row < count ? *reinterpret_cast<const uint4*>(at) : make_uint4(0, 0, 0, 0);
  }
  float log_sum[2];
#pragma unroll
  for (int half = 0; half < 2; half++) log_sum[half] = place.row(half) < count ? log_sums[place.row(half)] : 0.0f;
  wait_copies<1>();
  __syncthreads();
  float p[KEY_TILES][4], dp[KEY_TILES][4];
  multiply_rows(p, query_tile + place.query * STRIDE, key_tile + place.key * STRIDE, lane);
  const float scale = rsqrtf((float)DIM);
#pragma unroll
  for (int t = 0; t < KEY_TILES; t++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const bool seen = place.column(t) + i % 2 < total && place.row(i / 2) < count;
      p[t][i] = seen ? exp2f(p[t][i] * scale * LOG2_E - log_sum[i / 2]) : 0.0f;
    }
  }
  wait_for_predecessor();
  load_rows(upstream_tile, upstream + (size_t)first_query * DIM, QUERIES, count - first_query);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  float mean = 0;
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    const Float8 u = load_bf16x8(upstream_tile + mean_row * STRIDE + (piece + 4 * i) * 8);
    const Float8 o = load_bf16x8(reinterpret_cast<const bf16*>(results + i));
#pragma unroll
    for (int j = 0; j < 8; j++) mean += u.v[j] * o.v[j];
  }
  mean = quad_sum(mean);
  if (piece == 0) row_means[mean_row] = mean;
  multiply_rows(dp, upstream_tile + place.query * STRIDE, value_tile + place.key * STRIDE, lane);
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int own = place.query + lane / 4 + half * 8;
    const float row_mean = row_means[own];
#pragma unroll
    for (int t = 0; t < KEY_TILES; t++) {
      const float *weight = &p[t][half * 2], *slope = &dp[t][half * 2];
      const int at = own * WEIGHTS_STRIDE + place.key + t * 8 + lane % 4 * 2;
      *reinterpret_cast<uint32_t*>(slopes + at) =
          pack_bf16(weight[0] * (slope[0] - row_mean) * scale, weight[1] * (slope[1] - row_mean) * scale);
      *reinterpret_cast<uint32_t*>(probabilities + at) = pack_bf16(weight[0], weight[1]);
    }
  }
  __syncthreads();
  add_queries(query_parts, slopes, key_tile, place, count);
  const int own_keys = threadIdx.x / 32 * 16, first = blockIdx.y * KEYS + own_keys - fixed;
  if (first + 16 <= 0 || first >= rows) return;
  add_keys(key_parts, slopes + own_keys, query_tile, first, rows, lane);
  add_keys(value_parts, probabilities + own_keys, upstream_tile, first, rows, lane);
}

// The sums of `count` parts, `stride` values apart, of two values.
__device__ __forceinline__ float2 add_up(const float* first, const float* second, int count, size_t stride) {
  constexpr int BATCH = 14;
  float2 sum = {0, 0};
  for (int start = 0; start < count; start += BATCH) {
    float2 part[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      const bool there = start + i < count;
      part[i].x = there ? first[(start + i) * stride] : 0.0f, part[i].y = there ? second[(start + i) * stride] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < BATCH; i++) sum.x += part[i].x, sum.y += part[i].y;
  }
  return sum;
}

extern "C" __global__ void __launch_bounds__(HALF)
    attention_gradients(const float* query_parts, const float* key_parts, const float* value_parts, const float2* table,
                        const int* length, int constant, int tiles, bf16* out) {
  const int row = blockIdx.x, head = blockIdx.y, rows = gridDim.x, i = threadIdx.x;
  release_successor();
  const int position = *length + constant + row, splits = (*length + constant + rows + KEYS - 1) / KEYS;
  const float2 angle = table[(size_t)position * HALF + i];
  const size_t one = (size_t)rows * DIM, place = (size_t)row * DIM + i;
  const float* parts = query_parts + ((size_t)row * HEADS + head) * DIM + i;
  int count = splits;
  size_t stride = one * HEADS;
  if (head >= HEADS) parts = (head == HEADS ? key_parts : value_parts) + place, count = tiles, stride = one;
  wait_for_predecessor();
  const float2 sum = add_up(parts, parts + HALF, count, stride);
  float a = sum.x, b = sum.y;
  if (head <= HEADS) a = sum.x * angle.x + sum.y * angle.y, b = sum.y * angle.x - sum.x * angle.y;
  bf16* target = out + ((size_t)row * (HEADS + 2) + head) * DIM + i;
  target[0] = __float2bfloat16(a);
  target[HALF] = __float2bfloat16(b);
}
