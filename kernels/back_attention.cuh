// The way back through the action expert's attention (expert_attention.cuh): from the gradient of its result to that of raw q, k and v.
//
// With p the probabilities, u the gradient of the result and o the result:
//   dp = u v^T,   ds = p * (dp - sum(u * o)) / 16,   dq = ds k,   dk = ds^T q,   dv = p^T u
// where dk and dv are those of the suffix; then dq and dk are turned back. Queries (rotated, unscaled), keys, values, o and the sums of
// exponentials are those of the forward pass (Kept), so p needs no sums over blocks. With state_token, row 0 is constant: its
// gradients are 0. Rounded to bf16: p, ds, and the sums that blocks exchange.
//
// A group of 8 blocks takes 32 flat rows head * rows + row, each block an eighth of the keys (Keys): slots 0..7 are suffix rows, then
// come prefix rows. A warp of its own brings keys, values and queries. dq: warp w has dimensions 16 w .. and their rotary partners for
// block w of the group, which adds up eight parts. dk and dv: of 8 keys and all dimensions; of block b's group of rows b % 8 the
// dimensions 8 (b / 8) .. and their partners are added up over all groups of queries by block b, of all 128.
// in: fragments of flat rows as the forward pass has of its queries; out: fragments of K = 2560, accumulator order.
#pragma once
#include "back_arguments.cuh"

constexpr int PROBABILITY_BYTES = 48;  // of a row of 16 probabilities, padded

// Of dynamic shared memory, in bytes: keys, values and queries as rows of 512 bytes (place_of_value), then ds and p.
struct AttentionPlan {
  int values, queries, slopes, probabilities, ring;
  __device__ AttentionPlan(const Keys& keys)
      : values(keys.bytes()), queries(2 * keys.bytes()), slopes(queries + QUERIES * ROW_BYTES),
        probabilities(slopes + keys.probability_bytes()),
        ring((probabilities + QUERIES * PROBABILITY_BYTES + 127) / 128 * 128) {}
};

// By one warp: a layer's keys, values and queries of this block. They complete on `full`.
__device__ __forceinline__ void fetch_attention(const BackArguments& a, const Keys& keys, int layer, uint32_t memory, uint64_t* full) {
  const AttentionPlan plan(keys);
  const int lane = threadIdx.x % 32, length = *a.length;
  const size_t base = (size_t)layer * a.capacity * CHUNKS + lane;
  for (int slot = 0; slot < keys.count; slot++) {
    const bool suffix = slot < SUFFIX_SHARE, valid = slot < (suffix ? keys.suffix_end : keys.prefix_end);
    const size_t row = base + (size_t)(!valid ? 0 : suffix ? length + keys.suffix_row(slot) : keys.prefix_row(slot)) * CHUNKS;
    copy_chunk(memory + place_of_value(slot, lane), a.keys + row, valid);
    copy_chunk(memory + plan.values + place_of_value(slot, lane), a.values + row, valid);
    if (slot % 4 == 3) {
      commit_copies();
      wait_copies<1>();
    }
  }
  for (int query = 0; query < QUERIES; query++) {
    const int flat = blockIdx.x / ATTENTION_CLUSTER * QUERIES + query;
    const bool valid = flat < HEADS * a.rows;
    const int row = layer * ROWS + (valid ? flat % a.rows : 0), head = valid ? flat / a.rows : 0;
    copy_chunk(memory + plan.queries + place_of_value(query, lane), a.queries + (size_t)(row * HEADS + head) * CHUNKS + lane, valid);
    if (query % 8 == 7) {
      commit_copies();
      wait_copies<1>();
    }
  }
  wait_copies<0>();
  barrier_arrive(full);
}

// c[unit] [16 x 16] = this warp's 16 rows * its units of 16 keys, over all dimensions. T: units of the block.
template <int T, int UNITS>
__device__ __forceinline__ void multiply_keys(float (&c)[UNITS][2][4], uint32_t rows, uint32_t keys) {
  const int lane = threadIdx.x % 32, tile = threadIdx.x / 32 % 2, first = threadIdx.x / 64;
#pragma unroll
  for (int u = 0; u < UNITS; u++)
#pragma unroll
    for (int i = 0; i < 8; i++) c[u][i / 4][i % 4] = 0;
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    uint32_t x[4], b[4];
    load_four(x, rows + place_of_value(tile * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
      if (first + 4 * u >= T) break;
      load_four(b, keys + place_of_value((first + 4 * u) * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
      mma(c[u][0], x, b[0], b[1]);
      mma(c[u][1], x, b[2], b[3]);
    }
  }
}

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
  uint32_t x[2][4];
#pragma unroll
  for (int k = 0; k < 2; k++)
    load_four_transposed(x[k], weights + (k * 16 + lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 16);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int slice = threadIdx.x / 32 * 2 + i;
    float low[4] = {}, high[4] = {};
#pragma unroll
    for (int k = 0; k < 2; k++) {
      uint32_t b[4];
      load_four_transposed(b, rows + place_of_value(k * 16 + lane % 16, lane / 16 * 16 + slice));
      mma(low, x[k], b[0], b[1]);
      mma(high, x[k], b[2], b[3]);
    }
    const int owner = slice * ATTENTION_CLUSTER + rank;
    if (!has_key(a)) continue;
    put_tagged(a.key_parts + ((((size_t)(number & 1) * BLOCKS + owner) * 16 + group) * 2 + kind) * 32 + lane,
               packed_pairs(low[0], low[1], high[0], high[1]), tag_of(number));
  }
}

// dq of 32 rows and this warp's dimensions, in two halves of 8 and their partners, to block `warp` of the group.
template <int T>
__device__ __forceinline__ void send_query_parts(const BackArguments& a, int number, uint32_t slopes, uint32_t keys,
                                                 uint2 (&own)[256]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = blockIdx.x % ATTENTION_CLUSTER;
  uint2* target = a.query_parts + (((size_t)(number & 1) * BLOCKS + blockIdx.x - rank + warp) * ATTENTION_CLUSTER + rank) * 256 + lane;
#pragma unroll
  for (int part = 0; part < 2; part++) {
    float sums[2][2][4] = {};  // [row tile][lower or partner]
#pragma unroll
    for (int step = 0; step < T; step++) {
      uint32_t x[2][4], b[4];
#pragma unroll
      for (int i = 0; i < 2; i++)
        load_four(x[i], slopes + (i * 16 + lane % 16) * (T * 32 + 16) + step * 32 + lane / 16 * 16);
      load_four_transposed(b, keys + place_of_value(step * 16 + lane % 16, lane / 16 * 16 + warp * 2 + part));
#pragma unroll
      for (int i = 0; i < 2; i++) mma(sums[i][0], x[i], b[0], b[1]), mma(sums[i][1], x[i], b[2], b[3]);
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

// Sums (two dimensions from `dim` on and their partners) turned back by the position of a row, and put into the next product's input.
__device__ __forceinline__ void publish_turned(const BackArguments& a, int number, float4 v, int row, int head, int dim, bool turns) {
  if (turns) {
    const float4 angles = load4(a.rotary + ((size_t)(*a.length + row) * HALF + dim) * 2);  // (cos, sin) of two
    v = make_float4(v.x * angles.x + v.z * angles.y, v.y * angles.z + v.w * angles.w, v.z * angles.x - v.x * angles.y,
                    v.w * angles.z - v.y * angles.w);
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
__device__ __forceinline__ void gather_turned(const BackArguments& a, int number, bool attends, Turned& shared) {
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
  const int flat = blockIdx.x / ATTENTION_CLUSTER * QUERIES + warp / 4 * 16 + warp % 2 * 8 + lane / 4;
  if (attends && flat < HEADS * a.rows) {
    sum = restored(shared.own[threadIdx.x]);
#pragma unroll
    for (int i = 0; i < OTHERS; i++) sum = sum + restored(q[i]);
    publish_turned(a, number, sum, flat % a.rows, flat / a.rows, rank * 16 + warp / 2 % 2 * 8 + lane % 4 * 2, true);
  }
  const int row = rank * SUFFIX_SHARE + lane / 4;
  if (warp >= 2 || row >= a.rows) return;
  sum = shared.key_sums[warp * 4][lane];
#pragma unroll
  for (int i = 1; i < 4; i++) sum = sum + shared.key_sums[warp * 4 + i][lane];
  if (row < a.state_token) sum = make_float4(0, 0, 0, 0);
  publish_turned(a, number, sum, row, HEADS + warp, blockIdx.x / ATTENTION_CLUSTER * 8 + lane % 4 * 2, warp == 0);
}

struct AttentionShared {
  float means[4][QUERIES];
  uint64_t full, empty;  // of keys, values and queries
};

// What a thread knows before u is there.
template <int T>
struct Prepared {
  static constexpr int UNITS = (T + 3) / 4, STEPS = DIM / 16 / 4;
  float p[UNITS][2][4];
  uint4 results[STEPS];  // of the forward pass: this warp's quarter of the dimensions of its 16 rows, as fragments
};

// memory: dynamic shared memory; turn: how many layers it has been used for.
template <int T>
__device__ __forceinline__ void prepare_attention(const BackArguments& a, int layer, const Keys& keys, uint8_t* memory,
                                                  AttentionShared& shared, int turn, Prepared<T>& prepared) {
  constexpr int UNITS = Prepared<T>::UNITS, STEPS = Prepared<T>::STEPS;
  const AttentionPlan plan(keys);
  const int lane = threadIdx.x % 32, tile = threadIdx.x / 32 % 2, first = threadIdx.x / 64, group = blockIdx.x / ATTENTION_CLUSTER;
  const uint32_t base = shared_address(memory);
  auto& p = prepared.p;
  auto& results = prepared.results;
  bool valid[2];
  float log_sum[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int flat = group * QUERIES + tile * 16 + half * 8 + lane / 4, row = flat % a.rows, head = flat / a.rows;
    valid[half] = head < HEADS && row >= a.state_token;
    log_sum[half] = valid[half] ? a.log_sums[(layer * ROWS + row) * HEADS + head] : 0.0f;
    const uint32_t* result = a.attended + ((size_t)(layer * ROWS + row) * ATTENDED + head * DIM + first * (DIM / 4) + lane % 4 * 2) / 2;
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
      const uint32_t low = valid[half] ? result[i * 8] : 0, high = valid[half] ? result[i * 8 + 4] : 0;
      if (half == 0) results[i].x = low, results[i].z = high;
      else results[i].y = low, results[i].w = high;
    }
  }
  barrier_wait(&shared.full, turn & 1);
  multiply_keys<T>(p, base + plan.queries, base);
#pragma unroll
  for (int u = 0; u < UNITS; u++)
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int slot = (first + 4 * u) * 16 + t * 8 + lane % 4 * 2 + i % 2;
        const bool seen = valid[i / 2] && slot < (slot < SUFFIX_SHARE ? keys.suffix_end : keys.prefix_end);
        p[u][t][i] = seen ? exp2f(p[u][t][i] * (LOG2_E / 16) - log_sum[i / 2]) : 0.0f;
      }
  if (first == 0)
#pragma unroll
    for (int i = 0; i < 4; i++)
      *reinterpret_cast<uint32_t*>(memory + plan.probabilities + (tile * 16 + i % 2 * 8 + lane / 4) * PROBABILITY_BYTES + i / 2 * 16 +
                                   lane % 4 * 4) = pack_bf16(p[0][i / 2][i % 2 * 2], p[0][i / 2][i % 2 * 2 + 1]);
}

// upstream: 16 KB of shared memory for this block's rows of u.
template <int T>
__device__ __forceinline__ void through_attention(const BackArguments& a, int layer, int number, const Keys& keys, uint8_t* memory,
                                                  uint32_t upstream, AttentionShared& shared, Turned& turned,
                                                  const Prepared<T>& prepared) {
  constexpr int UNITS = Prepared<T>::UNITS, STEPS = Prepared<T>::STEPS;
  const AttentionPlan plan(keys);
  const int lane = threadIdx.x % 32, tile = threadIdx.x / 32 % 2, first = threadIdx.x / 64, group = blockIdx.x / ATTENTION_CLUSTER;
  const uint32_t base = shared_address(memory);
  const auto& p = prepared.p;
  const auto& results = prepared.results;
  float dp[UNITS][2][4];
  uint4 given[STEPS];
  const uint4* source = reinterpret_cast<const uint4*>(a.upstream) +
                        (((size_t)(number & 1) * 16 + group) * 2 + tile) * (DIM / 16) * 32 + first * STEPS * 32 + lane;
  await_sign(source + (STEPS - 1) * 32);
#pragma unroll
  for (int i = 0; i < STEPS; i++) given[i] = look(source + i * 32);
  await(given, source, 32);
  float mean[2] = {};
  const auto add_product = [](float& sum, uint32_t x, uint32_t y) {
    const float2 v = __bfloat1622float2(reinterpret_cast<__nv_bfloat162&>(x)), w = __bfloat1622float2(reinterpret_cast<__nv_bfloat162&>(y));
    sum += v.x * w.x + v.y * w.y;
  };
#pragma unroll
  for (int i = 0; i < STEPS; i++) {
    add_product(mean[0], given[i].x, results[i].x), add_product(mean[0], given[i].z, results[i].z);
    add_product(mean[1], given[i].y, results[i].y), add_product(mean[1], given[i].w, results[i].w);
    const int chunk = (first * STEPS + i) * 2;
    const uint32_t words[2][2] = {{given[i].x, given[i].z}, {given[i].y, given[i].w}};
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int c = 0; c < 2; c++)
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(upstream + place_of_value(tile * 16 + half * 8 + lane / 4, chunk + c) + lane % 4 * 4),
                     "r"(words[half][c])
                     : "memory");
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    mean[half] = quad_sum(mean[half]);
    if (lane % 4 == 0) shared.means[first][tile * 16 + half * 8 + lane / 4] = mean[half];
  }
  block_barrier();
  STAMP(a, layer, 16);
  multiply_keys<T>(dp, upstream, base + plan.values);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int own = tile * 16 + half * 8 + lane / 4;
    float all = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) all += shared.means[i][own];
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
      if (first + 4 * u >= T) break;
#pragma unroll
      for (int t = 0; t < 2; t++) {
        const float *weight = &p[u][t][half * 2], *slope = &dp[u][t][half * 2];
        *reinterpret_cast<uint32_t*>(memory + plan.slopes + own * (T * 32 + 16) + (first + 4 * u) * 32 + t * 16 + lane % 4 * 4) =
            pack_bf16(weight[0] * (slope[0] - all) * (1.0f / 16), weight[1] * (slope[1] - all) * (1.0f / 16));
      }
    }
  }
  block_barrier();
  STAMP(a, layer, 17);
  send_query_parts<T>(a, number, base + plan.slopes, base, turned.own);
  send_key_parts(a, number, 0, base + plan.slopes, T * 32 + 16, base + plan.queries);
  send_key_parts(a, number, 1, base + plan.probabilities, PROBABILITY_BYTES, upstream);
  __syncwarp();
  if (lane == 0) barrier_arrive(&shared.empty);
  STAMP(a, layer, 18);
}
