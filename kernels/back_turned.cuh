// The sums of attention's way back over blocks (back_attention.cuh): what queries and keys of a block add to dq, dk and dv is sent to the
// blocks that add it up, turn dq and dk back by the rotation of their rows, and put them into the input of the way back through q, k, v.
//
// dq: 8 parts, one for each eighth of the keys; warp w of a block has the dimensions 16 w .. and their rotary partners for block w of its
// group. dk and dv: as many parts as there are groups of queries; of the keys of rank r in a group block 8 s + r, of all 128, adds up the
// dimensions 8 s .. and their partners. Parts in bf16, tagged; out: fragments of K = 2560, accumulator order.
#pragma once
#include "back_arguments.cuh"

// Two neighbouring dimensions and their rotary partners.
__device__ __forceinline__ uint2 packed_pairs(float low, float next, float high, float after) {
  return make_uint2(pack_bf16(low, next), pack_bf16(high, after));
}

// Whether there is the suffix row of which a lane has the sums in the products of keys.
__device__ __forceinline__ bool has_key(const BackArguments& a) {
  return blockIdx.x % ATTENTION_CLUSTER * SUFFIX_SHARE + threadIdx.x % 32 / 4 < a.rows;
}

// This block's keys: what its queries add to dk and dv. weights: [query][slots], `stride` bytes a row; rows: queries or u.
__device__ __forceinline__ void send_key_parts(const BackArguments& a, int number, int kind, uint32_t weights, int stride, uint32_t rows) {
  const int lane = threadIdx.x % 32, rank = blockIdx.x % ATTENTION_CLUSTER, group = blockIdx.x / ATTENTION_CLUSTER;
  const int first = threadIdx.x / 32 * 2;
  uint32_t x[2][4], b[2][2][4];  // [slice][rows]
#pragma unroll
  for (int k = 0; k < 2; k++)
    load_four_transposed(x[k], weights + (k * 16 + lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 16);
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int k = 0; k < 2; k++) load_four_transposed(b[i][k], rows + place_of_value(k * 16 + lane % 16, lane / 16 * 16 + first + i));
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int slice = first + i;
    float low[4] = {}, high[4] = {};
#pragma unroll
    for (int k = 0; k < 2; k++) {
      mma(low, x[k], b[i][k][0], b[i][k][1]);
      mma(high, x[k], b[i][k][2], b[i][k][3]);
    }
    const int owner = slice * ATTENTION_CLUSTER + rank;
    uint2* target = a.key_parts + ((((size_t)(number & 1) * BLOCKS + owner) * 16 + group) * 2 + kind) * 32 + lane;
    if (has_key(a)) put_tagged(target, packed_pairs(low[0], low[1], high[0], high[1]), tag_of(number));
  }
}

// dq of 32 rows and this warp's dimensions, in two halves of 8 and their partners, to block `warp` of the group.
template <int T>
__device__ __forceinline__ void send_query_parts(const BackArguments& a, int number, uint32_t slopes, uint32_t keys,
                                                 uint2 (&own)[256]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = blockIdx.x % ATTENTION_CLUSTER;
  uint2* target = a.query_parts + (((size_t)(number & 1) * BLOCKS + blockIdx.x - rank + warp) * ATTENTION_CLUSTER + rank) * 256 + lane;
  uint32_t x[T][2][4], b[2][4];
  const auto load = [&](int part, int step) {
    load_four_transposed(b[step % 2], keys + place_of_value(step * 16 + lane % 16, lane / 16 * 16 + warp * 2 + part));
  };
#pragma unroll
  for (int step = 0; step < T; step++)
#pragma unroll
    for (int i = 0; i < 2; i++)
      load_four(x[step][i], slopes + (i * 16 + lane % 16) * (T * 32 + 16) + step * 32 + lane / 16 * 16);
#pragma unroll
  for (int part = 0; part < 2; part++) {
    float sums[2][2][4] = {};  // [row tile][lower or partner]
    load(part, 0);
#pragma unroll
    for (int step = 0; step < T; step++) {
      if (step + 1 < T) load(part, step + 1);
      const auto& own = b[step % 2];
#pragma unroll
      for (int i = 0; i < 2; i++) mma(sums[i][0], x[step][i], own[0], own[1]), mma(sums[i][1], x[step][i], own[2], own[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float(&low)[4] = sums[i / 2][0], (&high)[4] = sums[i / 2][1];
      const uint2 v = packed_pairs(low[i % 2 * 2], low[i % 2 * 2 + 1], high[i % 2 * 2], high[i % 2 * 2 + 1]);
      const int place = (i / 2 * 4 + part * 2 + i % 2) * 32;
      if (warp == rank) own[place + lane] = v;
      else put_tagged(target + place, v, tag_of(number));
    }
  }
}

// Two neighbouring dimensions and their partners, of one row.
struct TurnedPlace {
  int row, head, dim;
  bool used;
  __device__ float4 angles(const BackArguments& a) const {  // (cos, sin) of both
    return load4(a.rotary + ((size_t)(*a.length + row) * HALF + dim) * 2);
  }
};

// Of dq, of whose rows a block has some if it `attends`.
__device__ __forceinline__ TurnedPlace query_place(const BackArguments& a, bool attends) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = blockIdx.x % ATTENTION_CLUSTER;
  const int flat = blockIdx.x / ATTENTION_CLUSTER * QUERIES + warp / 4 * 16 + warp % 2 * 8 + lane / 4;
  return {flat % a.rows, flat / a.rows, rank * 16 + warp / 2 % 2 * 8 + lane % 4 * 2, attends && flat < HEADS * a.rows};
}

// Of dk and dv, in the first and in the second warp.
__device__ __forceinline__ TurnedPlace key_place(const BackArguments& a) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.x % ATTENTION_CLUSTER * SUFFIX_SHARE + lane / 4;
  return {row, HEADS + warp, blockIdx.x / ATTENTION_CLUSTER * 8 + lane % 4 * 2, warp < 2 && row < a.rows};
}

// What a thread turns its sums back by, the same in every layer.
struct Angles {
  float4 query, key;
  __device__ void load(const BackArguments& a, bool attends) {
    const TurnedPlace q = query_place(a, attends), k = key_place(a);
    query = key = make_float4(1, 0, 1, 0);
    if (q.used) query = q.angles(a);
    if (k.used && k.head == HEADS) key = k.angles(a);
  }
};

// Sums turned back by the position of their row, and put into the next product's input.
__device__ __forceinline__ void publish_turned(const BackArguments& a, int number, float4 v, const TurnedPlace& own, bool turns,
                                               const float4& known) {
  const int row = own.row, head = own.head, dim = own.dim;
  if (turns) {
    const float4 angles = NARROW ? known : own.angles(a);
    v = make_float4(v.x * angles.x + v.z * angles.y, v.y * angles.z + v.w * angles.w, v.z * angles.x - v.x * angles.y,
                    v.w * angles.z - v.y * angles.w);
  }
  if constexpr (NARROW) {
    const int step = head * (HALF / 16) + dim / 16;
    const int word = ((step * ROW_TILES + row / 16) * 32 + row % 8 * 4 + dim % 8 / 2) * 4 + dim % 16 / 8 * 2 + row % 16 / 8;
    publish(a.turned, (size_t)(ROWS * TURNED / 4), number, word, pack_four(E5m2(), v));
    return;
  }
  const int column = head * DIM + dim;
  const int place = ((column / 16 * ROW_TILES + row / 16) * 32 + row % 8 * 4 + dim % 8 / 2) * 4 + dim % 16 / 8 * 2 + row % 16 / 8;
  constexpr int APART = HALF / 16 * STEP_FRAGMENTS * 4, HALF_WORDS = ROWS * TURNED / 2;
  publish(a.turned, (size_t)HALF_WORDS, number, place, pack_bf16(v.x, v.y));
  publish(a.turned, (size_t)HALF_WORDS, number, place + APART, pack_bf16(v.z, v.w));
}

// What a block adds up: its own part of dq, and dk and dv by each warp, over a quarter of the groups.
struct Turned {
  uint2 own[256];
  float4 key_sums[8][32];
};

// dq of its group's rows, if this block `attends`, and of dk and dv its part, in a fixed order.
__device__ __forceinline__ void gather_turned(const BackArguments& a, int number, bool attends, Turned& shared,
                                              const Angles& angles) {
  constexpr int MOST = 16, EACH = MOST / 4, OTHERS = ATTENTION_CLUSTER - 1;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = number & 1, rank = blockIdx.x % ATTENTION_CLUSTER;
  const int groups = has_key(a) ? (HEADS * a.rows + QUERIES - 1) / QUERIES - warp % 4 * EACH : 0;  // for this warp, at most EACH
  const uint2* query_parts = a.query_parts + ((size_t)half * BLOCKS + blockIdx.x) * ATTENTION_CLUSTER * 256 + threadIdx.x;
  const uint2* key_parts = a.key_parts + ((((size_t)half * BLOCKS + blockIdx.x) * MOST + warp % 4 * EACH) * 2 + warp / 4) * 32 + lane;
  uint2 q[OTHERS] = {}, k[EACH] = {};
  for (int patience = PATIENCE;; patience--) {
    uint32_t wrong = 0;
#pragma unroll
    for (int i = 0; i < OTHERS; i++)
      if (attends) q[i] = look_whole(query_parts + (rank + 1 + i) % ATTENTION_CLUSTER * 256);
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (i < groups) k[i] = look_whole(key_parts + i * 64);
    if (attends) wrong = wrong_tags(q, tag_of(number));
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (i < groups) wrong |= (k[i].x ^ tag_of(number)) & 1;
    if (!__any_sync(0xffffffffu, wrong)) break;
    if (patience == 0) __trap();
  }
  float4 sum = restored(k[0]);
#pragma unroll
  for (int i = 1; i < EACH; i++) sum = sum + restored(k[i]);
  shared.key_sums[warp][lane] = sum;
  block_barrier();
  const TurnedPlace query = query_place(a, attends), key = key_place(a);
  if (query.used) {
    sum = restored(shared.own[threadIdx.x]);
#pragma unroll
    for (int i = 0; i < OTHERS; i++) sum = sum + restored(q[i]);
    publish_turned(a, number, sum, query, true, angles.query);
  }
  if (!key.used) return;
  sum = shared.key_sums[warp * 4][lane];
#pragma unroll
  for (int i = 1; i < 4; i++) sum = sum + shared.key_sums[warp * 4 + i][lane];
  if (key.row < a.state_token) sum = make_float4(0, 0, 0, 0);
  publish_turned(a, number, sum, key, key.head == HEADS, angles.key);
}
