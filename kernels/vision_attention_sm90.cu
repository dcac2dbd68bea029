// The attention of vision_attention.cu for Hopper: the same contract, on warpgroup matrix instructions.
// Architectures: 90a
//
// qkv is the raw output [views * 256, 3 * HEADS * DIM] of the QKV product; real values are qkv * channel_scale + bias
// (channel_scale may be null). out is bf16 [views * 256, HEADS * DIM], or with FP8 e4m3(value * inverse_scale).
// softmax(q k^T / sqrt(DIM)) v; logits and softmax in fp32, probabilities rounded to bf16 for the product with v.
// How scales and biases are folded: see vision_attention.cu. They are weights, read before the wait.
//
// A block is one warpgroup on 64 queries of a head. Everything comes through the copy engine; SHARERS blocks of an image
// and head are a cluster in which each fetches a part of keys and values for all. All 256 logits of a query are known
// before the first exponential, so there is no running maximum; products with values start after half of them. Values are
// fetched when the keys are there, not to compete with them.
//
// Rows lie in shared memory as [rows][64 columns] in the 128-byte swizzle, and with DIM > 64 the next 16 columns as
// [rows][16 columns] in the 32-byte swizzle. Of those, columns from DIM on belong to the next head: zeros in the queries
// meet them in the logits, and as columns of the result they are not used.
//
// grid (4, HEADS, views), cluster (SHARERS, 1, 1), 128 threads. Maps: all of qkv, in boxes of 64 rows by 64 columns and by
// 16 columns. Shared memory: 1152 * (64, or with DIM > 64 80) + 1024 bytes. DIM is a multiple of 8, 64 to 80.
// Roofline: 1.8 MB a view and 0.5 us of products; latency decides.
#ifndef HEADS
#define HEADS 16
#endif
#ifndef DIM
#define DIM 72
#endif
#ifndef SHARERS
#define SHARERS 2
#endif
#include "attention_sm90.cuh"

constexpr int TOKENS = 256, BOX = 64;         // rows of an image, and of a box or a block's queries
constexpr int WIDTH = HEADS * DIM;
constexpr int TAIL = DIM > 64 ? 16 : 0;       // columns beyond the first 64
constexpr int STEPS = (64 + TAIL) / 16;       // of the logits' product
constexpr int KEY_TILES = TOKENS / 8;
constexpr int TILES = DIM / 8;
constexpr int PARTS = 2;                      // of the keys: products with one run under the exponentials of the next
constexpr int ROW_BYTES = (64 + TAIL) * sizeof(bf16);

static_assert(DIM % 8 == 0 && DIM >= 64 && DIM <= 80, "one box of 64 columns, one of 16");

// Operand rows [rows][32 bytes] in the 32-byte swizzle, along K or along N.
__device__ __forceinline__ uint64_t tail_operand(const void* tile) {
  return ((uint64_t)(shared_address(tile) & 0x3ffff) >> 4) | (1ull << 16) | (16ull << 32) | (3ull << 62);
}

struct Maps {
  const TensorMap &main, &tail;
};

// Rows of one head in shared memory.
struct Tiles {
  bf16 *main, *tail;

  // A box of rows, for all blocks whose bit is set.
  __device__ void fetch(const Maps& maps, int box, int column, int row, uint64_t* barrier, int blocks) const {
    copy_box_to(main + box * BOX * 64, maps.main, column, row, barrier, blocks);
    if (TAIL) copy_box_to(tail + box * BOX * TAIL, maps.tail, column + 64, row, barrier, blocks);
  }
  // This block's part of the image's rows, for all blocks of the cluster.
  __device__ void fetch_shared(const Maps& maps, int column, int image, int rank, uint64_t* barrier) const {
#pragma unroll
    for (int i = 0; i < TOKENS / BOX / SHARERS; i++) {
      int box = i * SHARERS + rank;
      fetch(maps, box, column, image + box * BOX, barrier, (1 << SHARERS) - 1);
    }
  }
};

// What turns raw queries into real ones times the scale of the keys, at this thread's columns: two in each of 2 * STEPS.
struct Folding {
  float2 factor[2 * STEPS], shift[2 * STEPS];

  __device__ void load(const float* channel_scale, const float* bias, int column, int lane) {
#pragma unroll
    for (int i = 0; i < 2 * STEPS; i++) {
      factor[i] = shift[i] = make_float2(0, 0);
      if (i * 8 >= DIM) continue;
      int at = column + i * 8 + lane % 4 * 2;
      float2 own = make_float2(1, 1), key = own, b = __ldg(reinterpret_cast<const float2*>(bias + at));
      if (channel_scale) {
        own = __ldg(reinterpret_cast<const float2*>(channel_scale + at));
        key = __ldg(reinterpret_cast<const float2*>(channel_scale + WIDTH + at));
      }
      factor[i] = make_float2(own.x * key.x, own.y * key.y);
      shift[i] = make_float2(b.x * key.x, b.y * key.y);
    }
  }

  __device__ uint32_t apply(uint32_t raw, int i) const {
    if (i * 8 >= DIM) return 0;  // the next head's, not this one's
    float2 x = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&raw));
    return pack_bf16(fmaf(x.x, factor[i].x, shift[i].x), fmaf(x.y, factor[i].y, shift[i].y));
  }
};

// This warp's 16 queries as operand A of the logits.
__device__ __forceinline__ void load_queries(uint32_t (&a)[STEPS][4], const Tiles& queries, const Folding& folding, int warp,
                                             int lane) {
  int row = warp * 16 + lane % 16;
#pragma unroll
  for (int step = 0; step < STEPS; step++) {
    if (step < 4)
      load_matrices(a[step], queries.main + row * 64 + ((step * 2 + lane / 16) ^ row % 8) * 8);
    else
      load_matrices(a[step], queries.tail + row * TAIL + (lane / 16 ^ row / 4 % 2) * 8);
  }
#pragma unroll
  for (int i = 0; i < 4 * STEPS; i++) a[i / 4][i % 4] = folding.apply(a[i / 4][i % 4], i / 4 * 2 + i % 4 / 2);
}

__device__ __forceinline__ void multiply_keys(float (&logits)[KEY_TILES][4], const uint32_t (&a)[STEPS][4],
                                              const Tiles& keys) {
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < 4; k++) multiply(logits, a[k], swizzled_rows(keys.main + k * 16), k > 0);
  if (TAIL) multiply(logits, a[STEPS - 1], tail_operand(keys.tail), true);
  wgmma_commit();
  wgmma_wait<0>();
}

// Largest logit of each of the two rows, in units of log2(e).
__device__ __forceinline__ void find_top(float (&top)[2], const float (&logits)[KEY_TILES][4], float scale) {
  float most[4][4];  // independent chains
#pragma unroll
  for (int t = 0; t < KEY_TILES; t++) {
#pragma unroll
    for (int j = 0; j < 4; j++) most[t % 4][j] = t < 4 ? logits[t][j] : fmaxf(most[t % 4][j], logits[t][j]);
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float all = fmaxf(most[0][2 * h], most[0][2 * h + 1]);
#pragma unroll
    for (int i = 1; i < 4; i++) all = fmaxf(all, fmaxf(most[i][2 * h], most[i][2 * h + 1]));
    top[h] = quad_max(all) * scale;
  }
}

// Probabilities of keys 16 * step .. as an operand, and their share of the sums.
__device__ __forceinline__ void exponentiate_step(uint32_t (&a)[4], float (&sum)[2], float (&logits)[KEY_TILES][4],
                                                  const float (&top)[2], float scale, int step) {
#pragma unroll
  for (int t = 2 * step; t < 2 * step + 2; t++) {
#pragma unroll
    for (int j = 0; j < 4; j++) sum[j / 2] += logits[t][j] = exp2f(fmaf(logits[t][j], scale, -top[j / 2]));
  }
  as_operand(a, logits, 2 * step);
}

// Unnormalised result of 64 queries: the first 64 columns, and up to 16 more.
struct Result {
  float main[8][4], tail[2][4];
};

// Exponentials and products with values; the products of one part of the keys run under the exponentials of the next.
__device__ __forceinline__ void weigh_values(Result& result, float (&sum)[2], float (&logits)[KEY_TILES][4],
                                             const float (&top)[2], float scale, const Tiles& values,
                                             uint64_t* values_there) {
  constexpr int EACH = TOKENS / 16 / PARTS;
  uint32_t a[TOKENS / 16][4];
#pragma unroll
  for (int part = 0; part < PARTS; part++) {
#pragma unroll
    for (int step = part * EACH; step < (part + 1) * EACH; step++) exponentiate_step(a[step], sum, logits, top, scale, step);
    if (part == 0) barrier_wait(values_there, 0);
    wgmma_begin();
#pragma unroll
    for (int step = part * EACH; step < (part + 1) * EACH; step++) {
      multiply_columns(result.main, a[step], swizzled_columns(values.main + step * 16 * 64, 0), step > 0);
      if (TAIL) multiply_columns(result.tail, a[step], tail_operand(values.tail + step * 16 * TAIL), step > 0);
    }
    wgmma_commit();
  }
}

// Wait for the products; put this lane's two rows into real units and write them. scale may be null.
__device__ __forceinline__ void finish(const Result& result, const float (&sum)[2], const float* scale, const float* bias,
                                       Output* upper, float inverse_scale, int lane) {
  float2 s[TILES], b[TILES];
#pragma unroll
  for (int t = 0; t < TILES; t++) {
    int d = t * 8 + lane % 4 * 2;
    s[t] = scale ? __ldg(reinterpret_cast<const float2*>(scale + d)) : make_float2(1, 1);
    b[t] = __ldg(reinterpret_cast<const float2*>(bias + d));
  }
  float factor[2] = {1.0f / quad_sum(sum[0]), 1.0f / quad_sum(sum[1])};
  wgmma_wait<0>();
  float real[TILES][4];
#pragma unroll
  for (int t = 0; t < TILES; t++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float x = t < 8 ? result.main[t % 8][j] : result.tail[t % 2][j];
      real[t][j] = fmaf(x * factor[j / 2], j % 2 ? s[t].y : s[t].x, j % 2 ? b[t].y : b[t].x);
    }
  }
  Output* lower = upper + 8 * WIDTH;
  store_four_tiles(upper, lower, real, inverse_scale, lane);
  store_four_tiles(upper + 32, lower + 32, real + 4, inverse_scale, lane);
#pragma unroll
  for (int t = 8; t < TILES; t++) {
    int d = t * 8 + lane % 4 * 2;
    store_pair(upper + d, real[t][0], real[t][1], inverse_scale);
    store_pair(lower + d, real[t][2], real[t][3], inverse_scale);
  }
}

extern "C" __global__ void __launch_bounds__(128, 1)
    vision_attention(const __grid_constant__ TensorMap map, const __grid_constant__ TensorMap tail_map,
                     const float* channel_scale, const float* bias, Output* out, float inverse_scale) {
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t queries_there, keys_there, values_there;
  bf16* tiles = reinterpret_cast<bf16*>(shared + (1024 - shared_address(shared) % 1024) % 1024);
  bf16* tails = tiles + (2 * TOKENS + BOX) * 64;
  const Tiles keys = {tiles, tails}, values = {tiles + TOKENS * 64, tails + TOKENS * TAIL};
  const Tiles queries = {tiles + 2 * TOKENS * 64, tails + 2 * TOKENS * TAIL};
  const Maps maps = {map, tail_map};
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = blockIdx.x % SHARERS, column = blockIdx.y * DIM;
  int image = blockIdx.z * TOKENS, first = image + blockIdx.x * BOX;
  if (threadIdx.x == 0) {
    prefetch_map(map), prefetch_map(tail_map);
    barrier_init(&queries_there, 1), barrier_init(&keys_there, 1), barrier_init(&values_there, 1);
    barrier_init_done();
    barrier_expect(&queries_there, BOX * ROW_BYTES);
    barrier_expect(&keys_there, TOKENS * ROW_BYTES), barrier_expect(&values_there, TOKENS * ROW_BYTES);
  }
  __syncwarp();
  cluster_arrive();
  Folding folding;
  folding.load(channel_scale, bias, column, lane);
  cluster_wait();  // nobody sends before all barriers exist
  wait_for_predecessor();
  release_successor();
  if (threadIdx.x == 0) queries.fetch(maps, 0, column, first, &queries_there, 1 << rank);
  if (threadIdx.x == 32) keys.fetch_shared(maps, WIDTH + column, image, rank, &keys_there);
  __syncwarp();
  uint32_t a[STEPS][4];
  barrier_wait(&queries_there, 0);
  load_queries(a, queries, folding, warp, lane);
  barrier_wait(&keys_there, 0);
  if (threadIdx.x == 64) values.fetch_shared(maps, 2 * WIDTH + column, image, rank, &values_there);
  __syncwarp();

  const float scale = rsqrtf((float)DIM) * LOG2_E;
  float logits[KEY_TILES][4], top[2], sum[2] = {0, 0};
  Result result;
  multiply_keys(logits, a, keys);
  find_top(top, logits, scale);
  weigh_values(result, sum, logits, top, scale, values, &values_there);
  const float* value_scale = channel_scale ? channel_scale + 2 * WIDTH + column : nullptr;
  Output* row = out + (size_t)(first + warp * 16 + lane / 4) * WIDTH + column;
  finish(result, sum, value_scale, bias + 2 * WIDTH + column, row, inverse_scale, lane);
}
