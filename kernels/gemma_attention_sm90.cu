// The attention of gemma_attention.cu for Hopper: the same contract, on warpgroup matrix instructions.
// Architectures: 90a
//
// queries bf16 [rows, HEADS * 256] (after RoPE, unscaled); keys, values bf16 [capacity, 256]; out as queries, in bf16 or
// with FP8 e4m3(value * inverse_scale). Every query sees the keys 0 .. *length + appended - 1; query row 0 sees only
// *length + first_sees when first_sees is not negative. Keys beyond are never used but must be finite. *length is read
// early: the kernel just before must not write it. Logits and softmax in fp32, probabilities rounded to bf16 for the
// product with the values. With several blocks along the keys, what each found is normalised and exchanged in fp16:
// values are below 65504, and get an error of at most 2^-11 of themselves or 3e-8.
//
// All heads see the same keys, so the rows * HEADS queries are one list. A block takes 128 of them, 64 for each of its two
// warpgroups, and a share of the keys: grid (queries / 128, blocks along the keys), the latter at most 8 and one cluster,
// 256 threads. Everything comes through the copy engine, queries once for the whole cluster.
//
// A block takes KEYS keys at once (192, or 160 or 128 to make room for MORE passes), a quarter of their columns after the other.
// All logits are known before the first exponential; the first half of the result's columns is computed under the
// exponentials, then each part is sent to the block that finishes it under the products of the next. A block finishes
// whole groups of 16 rows, those of one warp in all blocks.
//
// Maps: queries in boxes of 128 rows, keys and values of KEYS, by 64 columns, 128-byte swizzle. Shared memory: 225 KB.
// Roofline at 576 rows and 562 keys: 2.7 GFLOP, 3.5 us; 23 MB from the second-level cache, 5 MB between blocks.
#ifndef HEADS
#define HEADS 8
#endif
#ifndef KEYS
#define KEYS 192
#endif
#ifndef MORE
#define MORE 0
#endif
#include "gemma_exchange_sm90.cuh"

constexpr int QUARTERS = 4;  // of the columns, 128 bytes each
constexpr int KEY_TILES = KEYS / 8, STEPS = KEYS / 16, BATCHES = KEYS == 192 ? 3 : 2, BATCH = STEPS / BATCHES;
constexpr int QUERY_BYTES = QUERIES * 128, KEY_BYTES = KEYS * 128;  // of a quarter of the columns
constexpr int KEY_PLACE = QUARTERS * QUERY_BYTES, VALUE_PLACE = KEY_PLACE + QUARTERS * KEY_BYTES;
constexpr int LIMIT = 224 << 10;
constexpr bool REUSE = VALUE_PLACE + QUARTERS * KEY_BYTES > LIMIT;  // the last two quarters of values lie over used keys
constexpr int SOFTMAX_PLACE = REUSE ? LIMIT - SOFTMAX_BYTES : RECEIVED_BYTES;

static_assert(!(REUSE && MORE), "keys of the next pass need a place of their own");
static_assert(RECEIVED_BYTES <= VALUE_PLACE - (REUSE ? 2 * KEY_BYTES : SOFTMAX_BYTES), "partials lie over queries and keys");

struct Barriers {
  uint64_t keys[QUARTERS];          // a quarter of the keys, and in the first pass of the queries, is there
  uint64_t values[QUARTERS];        // a quarter of the values is there
  uint64_t keys_used, values_used;  // by all warps
  uint64_t partials[PARTS];         // that part of what other blocks send is there
};

struct Maps {
  const TensorMap &queries, &keys, &values;
};

__device__ __forceinline__ uint8_t* value_quarter(uint8_t* memory, int quarter) {
  return memory + VALUE_PLACE + (REUSE && quarter >= 2 ? quarter - 4 : quarter) * KEY_BYTES;
}

__device__ __forceinline__ void fetch_keys(uint8_t* memory, Barriers& barriers, const Maps& maps, const Place& place,
                                           int row, int quarter, bool first) {
  uint64_t* barrier = barriers.keys + quarter;
  barrier_expect(barrier, KEY_BYTES + (first ? QUERY_BYTES : 0));
  if (first && quarter % place.split == place.rank)
    copy_box_to(memory + quarter * QUERY_BYTES, maps.queries, quarter * 64, blockIdx.x * QUERIES, barrier,
                (1 << place.split) - 1);
  copy_box(memory + KEY_PLACE + quarter * KEY_BYTES, maps.keys, quarter * 64, row, barrier);
}

__device__ __forceinline__ void fetch_values(uint8_t* memory, Barriers& barriers, const Maps& maps, int row, int quarter) {
  barrier_expect(barriers.values + quarter, KEY_BYTES);
  copy_box(value_quarter(memory, quarter), maps.values, quarter * 64, row, barriers.values + quarter);
}

// `between` runs when all but the last quarter of the keys are there.
template <class Between>
__device__ __forceinline__ void multiply_keys(float (&logits)[KEY_TILES][4], const uint8_t* memory, Barriers& barriers,
                                              int warpgroup, int parity, Between between) {
  const uint8_t *queries = memory + warpgroup * 64 * 128, *keys = memory + KEY_PLACE;
#pragma unroll
  for (int q = 0; q < QUARTERS; q++) {
    barrier_wait(barriers.keys + q, parity);
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < 4; k++)
      multiply(logits, swizzled_rows(queries + q * QUERY_BYTES + k * 32), swizzled_rows(keys + q * KEY_BYTES + k * 32),
               q + k > 0);
    wgmma_commit();
    if (q == QUARTERS - 2) between();
  }
  wgmma_wait<0>();
}

// Logits of keys that a row does not see become minus infinity.
__device__ __forceinline__ void mask(float (&logits)[KEY_TILES][4], const int (&seen)[2], int lane) {
  constexpr int PIECE = KEY_TILES / BATCHES;
  int left[2] = {seen[0] - lane % 4 * 2, seen[1] - lane % 4 * 2};
#pragma unroll
  for (int first = 0; first < KEY_TILES; first += PIECE) {
    if (min(seen[0], seen[1]) >= (first + PIECE) * 8) continue;
#pragma unroll
    for (int t = first; t < first + PIECE; t++) {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (t * 8 + j % 2 >= left[j / 2]) logits[t][j] = -INFINITY;
    }
  }
}

// New largest logits in units of log2(e); `correction` is what earlier sums and results have to be multiplied with.
__device__ __forceinline__ void update_top(float (&top)[2], float (&correction)[2], const float (&logits)[KEY_TILES][4],
                                           float scale) {
  float most[4];  // independent chains
#pragma unroll
  for (int t = 0; t < KEY_TILES; t++) {
#pragma unroll
    for (int j = 0; j < 4; j++) most[j] = t ? fmaxf(most[j], logits[t][j]) : logits[t][j];
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float found = fmaxf(most[2 * h], most[2 * h + 1]);
    found = fmaxf(top[h], quad_max(found) * scale);
    correction[h] = exp2f(top[h] - (found == -INFINITY ? 0.0f : found));
    top[h] = found;
  }
}

// 64 queries' result in the parts in which it is finished: columns 0 .. 127, 128 .. 191, 192 .. 255.
struct Result {
  float half[16][4], quarters[2][8][4];

  __device__ void multiply(const float (&factor)[2]) {
    multiply_rows(half, factor), multiply_rows(quarters[0], factor), multiply_rows(quarters[1], factor);
  }
};

// Probabilities of 16 keys as an operand, and their share of the sums.
__device__ __forceinline__ void exponentiate_step(uint32_t (&a)[4], float (&sum)[2], float (&logits)[KEY_TILES][4],
                                                  const float (&reference)[2], float scale, int step) {
#pragma unroll
  for (int t = 2 * step; t < 2 * step + 2; t++) {
#pragma unroll
    for (int j = 0; j < 4; j++) sum[j / 2] += logits[t][j] = exp2f(fmaf(logits[t][j], scale, -reference[j / 2]));
  }
  as_operand(a, logits, 2 * step);
}

// Exponentials of all keys, and under them the products with the first half of the values' columns.
__device__ __forceinline__ void weigh_half(float (&half)[16][4], uint32_t (&a)[STEPS][4], float (&sum)[2],
                                           float (&logits)[KEY_TILES][4], const float (&top)[2], float scale, uint8_t* memory,
                                           Barriers& barriers, int parity, int pass) {
  float reference[2] = {top[0] == -INFINITY ? 0.0f : top[0], top[1] == -INFINITY ? 0.0f : top[1]};
#pragma unroll
  for (int batch = 0; batch < BATCHES; batch++) {
#pragma unroll
    for (int k = batch * BATCH; k < (batch + 1) * BATCH; k++) exponentiate_step(a[k], sum, logits, reference, scale, k);
    if (batch == 0) barrier_wait(barriers.values, parity), barrier_wait(barriers.values + 1, parity);
    wgmma_begin();
#pragma unroll
    for (int k = batch * BATCH; k < (batch + 1) * BATCH; k++)
      multiply_columns(half, a[k], swizzled_columns(value_quarter(memory, 0) + k * 16 * 128, KEY_BYTES), pass + k > 0);
    wgmma_commit();
  }
}

__device__ __forceinline__ void weigh_quarter(float (&quarter)[8][4], const uint32_t (&a)[STEPS][4], const uint8_t* values,
                                              int pass) {
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < STEPS; k++)
    multiply_columns(quarter, a[k], swizzled_columns(values + k * 16 * 128, 0), pass + k > 0);
  wgmma_commit();
}

// The keys that this lane's two rows see, counted from the block's first.
__device__ __forceinline__ void find_limits(int (&limit)[2], const Place& place, int first_row_sees, int warp, int lane) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int query = blockIdx.x * QUERIES + warp * 16 + lane / 4 + h * 8;
    limit[h] = (query < HEADS ? min(place.end, first_row_sees) : place.end) - place.begin;
  }
}

// By one thread, before any other block may send.
__device__ __forceinline__ void prepare(Barriers& barriers, const Maps& maps, const Place& place) {
  prefetch_map(maps.queries), prefetch_map(maps.keys), prefetch_map(maps.values);
  for (int q = 0; q < QUARTERS; q++) barrier_init(barriers.keys + q, 1), barrier_init(barriers.values + q, 1);
  barrier_init(&barriers.keys_used, WARPS), barrier_init(&barriers.values_used, WARPS);
  for (int part = 0; part < PARTS; part++) barrier_init(barriers.partials + part, 1 + place.groups());
  barrier_init_done();
  int received = place.groups() * (place.split - 1);  // groups of rows from other blocks
  for (int part = 0; part < PARTS; part++)
    barrier_expect(barriers.partials + part, received * (part ? PARTIAL_BYTES / 4 : PARTIAL_BYTES / 2 + 16 * (int)sizeof(float2)));
}

// Of MORE passes the second warpgroup starts the first when the first warpgroup has its logits, so that one computes
// exponentials while the other multiplies.
__device__ __forceinline__ void go_ahead() { asm volatile("bar.arrive 1, 256;" ::: "memory"); }
__device__ __forceinline__ void lag_behind() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

extern "C" __global__ void __launch_bounds__(256, 1)
    gemma_attention(const __grid_constant__ TensorMap query_map, const __grid_constant__ TensorMap key_map,
                    const __grid_constant__ TensorMap value_map, const int* length, int appended, int first_sees, int rows,
                    Output* out, float inverse_scale) {
  extern __shared__ uint8_t raw_memory[];
  __shared__ Barriers barriers;
  uint8_t* memory = raw_memory + (1024 - shared_address(raw_memory) % 1024) % 1024;
  float2(*softmax)[MOST_BLOCKS][16] = reinterpret_cast<float2(*)[MOST_BLOCKS][16]>(memory + SOFTMAX_PLACE);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, valid = __ldcg(length);
  const Place place(valid + appended);
  const Maps maps = {query_map, key_map, value_map};
  if (threadIdx.x == 0) prepare(barriers, maps, place);
  __syncwarp();
  cluster_arrive();
  cluster_wait();  // nobody sends before all barriers exist
  wait_for_predecessor();
  release_successor();
  // One thread in each warp of the second warpgroup fetches a quarter of everything.
  const int fetched = warp - WARPS / 2;
  const bool fetches = fetched >= 0 && lane == 0;
  if (fetches) fetch_keys(memory, barriers, maps, place, place.begin, fetched, true);
  __syncwarp();
  int limit[2];
  find_limits(limit, place, first_sees >= 0 ? valid + first_sees : place.total, warp, lane);
  const float scale = rsqrtf((float)DIM) * LOG2_E;
  const int passes = MORE ? max(1, (place.end - place.begin + KEYS - 1) / KEYS) : 1;
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  Result result;
  float factor[2];
  const bool split = place.split > 1;
#pragma unroll 1
  for (int pass = 0; pass < (MORE ? passes : 1); pass++) {
    const int parity = MORE ? pass & 1 : 0, row = place.begin + pass * KEYS;
    const bool last = !MORE || pass + 1 == passes;
    float logits[KEY_TILES][4], correction[2];
    if (MORE && pass == 0 && warp >= WARPS / 2) {
      barrier_wait(barriers.keys + QUARTERS - 2, parity);
      if (fetches) fetch_values(memory, barriers, maps, row, fetched);
      __syncwarp();
      lag_behind();
    }
    multiply_keys(logits, memory, barriers, warp / 4, parity, [&] {
      if (!MORE && pass == 0 && fetches && (!REUSE || fetched < 2)) fetch_values(memory, barriers, maps, row, fetched);
      __syncwarp();
    });
    if (MORE && pass == 0 && warp < WARPS / 2) go_ahead();
    if (last) cluster_arrive();  // queries and keys are not needed any more
    warp_done(&barriers.keys_used, lane);
    int seen[2] = {limit[0] - pass * KEYS, limit[1] - pass * KEYS};
    mask(logits, seen, lane);
    update_top(top, correction, logits, scale);
    if (fetches && (REUSE ? fetched >= 2 : !last)) {
      barrier_wait(&barriers.keys_used, parity);
      if (REUSE)
        fetch_values(memory, barriers, maps, row, fetched);
      else
        fetch_keys(memory, barriers, maps, place, row + KEYS, fetched, false);
    }
    __syncwarp();
    if (MORE && pass > 0) {
      result.multiply(correction);
      sum[0] *= correction[0], sum[1] *= correction[1];
    }
    uint32_t a[STEPS][4];
    weigh_half(result.half, a, sum, logits, top, scale, memory, barriers, parity, pass);
    if (last) {
      if (split) cluster_wait();  // all blocks have used queries and keys
      Delivery(memory, barriers.partials, place, warp, lane).begin(factor, split, top, sum, softmax);
    }
#pragma unroll
    for (int q = 0; q < 2; q++) {
      barrier_wait(barriers.values + 2 + q, parity);
      weigh_quarter(result.quarters[q], a, value_quarter(memory, 2 + q), pass);
      if (last && split) {
        wgmma_wait<1>();
        const Delivery delivery(memory, barriers.partials, place, warp, lane);
        q == 0 ? delivery.send(result.half, factor, 0) : delivery.send(result.quarters[0], factor, 1);
      }
    }
    if (last) break;
    wgmma_wait<0>();
    warp_done(&barriers.values_used, lane);
    if (fetches) {
      barrier_wait(&barriers.values_used, parity);
      fetch_values(memory, barriers, maps, row + KEYS, fetched);
    }
    __syncwarp();
  }
  const int queries = rows * HEADS;
  if (!split) {
    cluster_wait();
    wgmma_wait<0>();
    result.multiply(factor);
#pragma unroll
    for (int t = 0; t < 16; t += 4) {
      store_rows(out, result.half + t, warp, t * 8, queries, inverse_scale, lane);
      store_rows(out, result.quarters[t / 8] + t % 8, warp, 128 + t * 8, queries, inverse_scale, lane);
    }
    return;
  }
  wgmma_wait<0>();
  Delivery(memory, barriers.partials, place, warp, lane).send(result.quarters[1], factor, 2);
  wait_for_peers(barriers.partials + max(0, warp / 2 - 1), 0);
  if (place.split == 2)
    finish<2>(memory, softmax, place, out, queries, inverse_scale, warp, lane);
  else if (place.split == 3)
    finish<3>(memory, softmax, place, out, queries, inverse_scale, warp, lane);
  else
    finish<0>(memory, softmax, place, out, queries, inverse_scale, warp, lane);
}
