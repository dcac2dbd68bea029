// The way back through the action expert's attention (expert_attention.cuh): from the gradient of its result to that of raw q, k and v.
//
// With p the probabilities, u the gradient of the result and o the result:
//   dp = u v^T,   ds = p * (dp - sum(u * o)) / 16,   dq = ds k,   dk = ds^T q,   dv = p^T u
// where dk and dv are those of the suffix; then dq and dk are turned back. Queries (rotated, unscaled), keys, values, o and the sums of
// exponentials are those of the forward pass (Kept), so p needs no sums over blocks. With state_token, row 0 is constant: its
// gradients are 0. Rounded to bf16: p, ds, and the sums that blocks exchange.
//
// A group of 8 blocks takes 32 flat rows head * rows + row, each block an eighth of the keys (Keys): slots 0..7 are suffix rows, then
// come prefix rows. A warp of its own brings keys, values and queries. Sums over blocks: back_turned.cuh.
// in: fragments of flat rows, as the forward pass has of its queries (expert_qkv.cuh).
// 50 rows, 612 keys: 0.5 GFLOP; what decides is three trips in a row and 22 KB of sums to store a block.
#pragma once
#include "back_turned.cuh"

constexpr int FETCHERS = NARROW ? 3 : 1;
constexpr int FETCHED = NARROW ? 4 : 8;  // rows of 512 bytes that a warp asks for at a time, with as many on their way
constexpr int PROBABILITY_BYTES = 48;  // of a row of 16 probabilities, padded

// Of dynamic shared memory, in bytes: keys, values and queries as rows of 512 bytes (place_of_value), then ds and p.
struct AttentionPlan {
  int values, queries, slopes, probabilities, ring;
  __device__ AttentionPlan(const Keys& keys)
      : values(keys.bytes()), queries(2 * keys.bytes()), slopes(queries + QUERIES * ROW_BYTES),
        probabilities(slopes + keys.probability_bytes()),
        ring((probabilities + QUERIES * PROBABILITY_BYTES + 127) / 128 * 128) {}
};

// Of attention's keys, values and queries; keys and queries are full first.
struct AttentionBarriers {
  uint64_t full, values_full, empty;
};

// By FETCHERS warps: a layer's keys and queries of this block, which complete on `full`, then its values. One warp alone would take
// most of a layer for the addresses.
__device__ __forceinline__ void fetch_attention(const BackArguments& a, const Keys& keys, int layer, uint32_t memory,
                                                AttentionBarriers& barriers) {
  const AttentionPlan plan(keys);
  const int lane = threadIdx.x % 32, length = *a.length, own = FETCHERS == 1 ? 0 : threadIdx.x / 32 - THREADS / 32 - 1;
  const size_t base = (size_t)layer * a.capacity * CHUNKS + lane;
  const auto batch_ends = [](int row, int turn) { return FETCHERS == 1 ? row % FETCHED == FETCHED - 1 : turn % FETCHED == 0; };
  const auto fetch_slots = [&](uint32_t target, const uint4* source) {
    for (int slot = own, turn = 1; slot < keys.count; slot += FETCHERS, turn++) {
      const bool suffix = slot < SUFFIX_SHARE, valid = slot < (suffix ? keys.suffix_end : keys.prefix_end);
      const size_t row = base + (size_t)(!valid ? 0 : suffix ? length + keys.suffix_row(slot) : keys.prefix_row(slot)) * CHUNKS;
      copy_chunk(target + place_of_value(slot, lane), source + row, valid);
      if (batch_ends(slot, turn) || (FETCHERS == 1 ? slot == keys.count - 1 : slot + FETCHERS >= keys.count)) {
        commit_copies();
        wait_copies<1>();
      }
    }
  };
  for (int query = own, turn = 1; query < QUERIES; query += FETCHERS, turn++) {
    const int flat = blockIdx.x / ATTENTION_CLUSTER * QUERIES + query;
    const bool valid = flat < HEADS * a.rows;
    const int row = layer * ROWS + (valid ? flat % a.rows : 0), head = valid ? flat / a.rows : 0;
    copy_chunk(memory + plan.queries + place_of_value(query, lane), a.queries + (size_t)(row * HEADS + head) * CHUNKS + lane, valid);
    if (batch_ends(query, turn)) {
      commit_copies();
      wait_copies<1>();
    }
  }
  fetch_slots(memory, a.keys);
  wait_copies<0>();
  barrier_arrive(&barriers.full);
  fetch_slots(memory + plan.values, a.values);
  wait_copies<0>();
  barrier_arrive(&barriers.values_full);
}

// c[unit] [16 x 16] = this warp's 16 rows * UNITS of its units of 16 keys, over all dimensions; loads are a step ahead.
template <int UNITS, int MOST>
__device__ __forceinline__ void multiply_units(float (&c)[MOST][2][4], uint32_t rows, uint32_t keys) {
  const int lane = threadIdx.x % 32, tile = threadIdx.x / 32 % 2, first = threadIdx.x / 64;
  uint32_t x[2][4], b[2][UNITS][4];
  const auto load = [&](int step) {
    load_four(x[step % 2], rows + place_of_value(tile * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
    for (int u = 0; u < UNITS; u++)
      load_four(b[step % 2][u], keys + place_of_value((first + 4 * u) * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
  };
  load(0);
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    if (step + 1 < DIM / 16) load(step + 1);
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
      const auto& own = b[step % 2][u];
      mma(c[u][0], x[step % 2], own[0], own[1]);
      mma(c[u][1], x[step % 2], own[2], own[3]);
    }
  }
}

// The same of T units that a block has.
template <int T, int MOST>
__device__ __forceinline__ void multiply_keys(float (&c)[MOST][2][4], uint32_t rows, uint32_t keys) {
  constexpr int UNITS = (T + 3) / 4;
#pragma unroll
  for (int u = 0; u < UNITS; u++)
#pragma unroll
    for (int i = 0; i < 8; i++) c[u][i / 4][i % 4] = 0;
  if (threadIdx.x / 64 + 4 * (UNITS - 1) < T) multiply_units<UNITS>(c, rows, keys);
  else if constexpr (UNITS > 1) multiply_units<UNITS - 1>(c, rows, keys);
}

struct AttentionShared {
  float means[4][QUERIES];
  AttentionBarriers barriers;
};

// What a thread knows before u is there.
struct Prepared {
  static constexpr int MOST_UNITS = (9 + 3) / 4, STEPS = DIM / 16 / 4;
  float p[MOST_UNITS][2][4], log_sum[2];
  bool valid[2];
  uint4 results[STEPS];  // of the forward pass: this warp's quarter of the dimensions of its 16 rows, as they are kept

  __device__ void load(const BackArguments& a, int layer) {
    const int lane = threadIdx.x % 32, first = threadIdx.x / 64, tile = blockIdx.x / ATTENTION_CLUSTER * 2 + threadIdx.x / 32 % 2;
    const uint4* result = a.attended + ((layer * HEADS * ROW_TILES + tile) * (DIM / 16) + first * STEPS) * 32 + lane;
#pragma unroll
    for (int i = 0; i < STEPS; i++)
      if constexpr (NARROW) results[i] = look(result + i * 32);
      else results[i] = result[i * 32];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int flat = tile * 16 + half * 8 + lane / 4;
      valid[half] = flat < HEADS * a.rows && flat % a.rows >= a.state_token;
      log_sum[half] = __uint_as_float(look(reinterpret_cast<const uint32_t*>(a.log_sums) + layer * HEADS * ROWS + flat));
    }
  }
};

// memory: dynamic shared memory; turn: how many layers it has been used for.
template <int T>
__device__ __forceinline__ void prepare_attention(const BackArguments& a, int layer, const Keys& keys, uint8_t* memory,
                                                  AttentionShared& shared, int turn, Prepared& prepared) {
  constexpr int UNITS = (T + 3) / 4, STEPS = Prepared::STEPS;
  const AttentionPlan plan(keys);
  const int lane = threadIdx.x % 32, tile = threadIdx.x / 32 % 2, first = threadIdx.x / 64, group = blockIdx.x / ATTENTION_CLUSTER;
  const uint32_t base = shared_address(memory);
  auto& p = prepared.p;
  auto &valid = prepared.valid;
  auto &log_sum = prepared.log_sum;
  if (!NARROW) prepared.load(a, layer);
  barrier_wait(&shared.barriers.full, turn & 1);
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
                                                  uint32_t upstream, AttentionShared& shared, int turn, Turned& turned,
                                                  const Prepared& prepared) {
  constexpr int UNITS = (T + 3) / 4, STEPS = Prepared::STEPS;
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
    add_product(mean[0], given[i].x, results[i].x), add_product(mean[0], given[i].z, results[i].y);
    add_product(mean[1], given[i].y, results[i].z), add_product(mean[1], given[i].w, results[i].w);
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
  STAMP(a, layer, 9);
  barrier_wait(&shared.barriers.values_full, turn & 1);
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
  STAMP(a, layer, 10);
  send_query_parts<T>(a, number, base + plan.slopes, base, turned.own);
  send_key_parts(a, number, 0, base + plan.slopes, T * 32 + 16, base + plan.queries);
  send_key_parts(a, number, 1, base + plan.probabilities, PROBABILITY_BYTES, upstream);
  __syncwarp();
  if (lane == 0) barrier_arrive(&shared.barriers.empty);
  STAMP(a, layer, 11);
}
