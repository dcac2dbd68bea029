// Attention of the action expert: 8 query heads on one K/V head of 256, over a prefix of device-side length and the suffix.
//
// q: fragments written by expert_qkv.cuh over flat rows head * rows + row, scaled by 1/16. prefix_k, prefix_v: bf16 [capacity][256]
// with *length valid rows, rotated; suffix k, v: bf16 [64][256] with `rows` valid rows. With state_token, row 0 sees of the
// suffix only itself (pi0). out: fragments of K = 2048 in accumulator order, bf16, or e4m3 of value * inverse_scale, saturated.
// Logits, softmax and sums in fp32; in bf16: the operands of both products, probabilities, and the sums that blocks exchange.
//
// A group of 8 blocks takes 32 flat rows; each block takes an eighth of the keys: `share` prefix keys, which a warp of its own
// fetches ahead, and 8 suffix keys. Logits are wgmma, whose rows 32..63 are idle: it reads the keys once where warp-level products
// would read them and the queries again and again, and shared memory is the bottleneck. Each warpgroup takes half of
// the keys; in 8 bits and with up to 80 of them half of the dimensions, so that it reads half of the queries (halved_logits).
// Probabilities x values: warp w holds dimensions 32 w .. of the sums, and sends them to block w of the group, which merges and
// writes them.
#pragma once
#include "expert_qkv.cuh"
#include "expert_wgmma.cuh"

constexpr int SUFFIX_SHARE = ROWS / ATTENTION_CLUSTER;
constexpr int ROW_BYTES = DIM * 2, CHUNKS = ROW_BYTES / 16;
constexpr float LOG2_E = 1.4426950408889634f, NOTHING = -1e30f;

// What this block sees of the keys: slots 0..7 are its suffix rows, then come its `share` prefix rows.
struct Keys {
  int share, rank;             // prefix rows a block
  int tiles, count;            // tiles of 8 slots a warpgroup, one of the sizes that are compiled; slots
  int suffix_end, prefix_end;  // first slot behind the valid suffix rows, and behind the valid prefix rows
  __device__ Keys(int length, int rows) {
    rank = blockIdx.x % ATTENTION_CLUSTER;
    share = (length + 8 * ATTENTION_CLUSTER - 1) / (8 * ATTENTION_CLUSTER) * 8;
    int needed = share + SUFFIX_SHARE;
    tiles = needed <= 48 ? 3 : needed <= 80 ? 5 : needed <= 96 ? 6 : 9;
    count = tiles * 16;
    suffix_end = min(SUFFIX_SHARE, rows - rank * SUFFIX_SHARE);
    prefix_end = SUFFIX_SHARE + max(0, min(share, length - rank * share));
  }
  __device__ int suffix_row(int slot) const { return rank * SUFFIX_SHARE + slot; }
  __device__ int prefix_row(int slot) const { return rank * share + slot - SUFFIX_SHARE; }
  __device__ int bytes() const { return count * ROW_BYTES; }               // of keys, and of values
  __device__ int probability_bytes() const { return QUERIES * (count * 2 + 16); }
};

// Where the 16 bytes `chunk` of a row lie. Keys: four pieces of 64 dimensions, each with wgmma's 128-byte swizzle.
__device__ __forceinline__ int place_of_key(int slot, int chunk, int count) {
  return chunk / 8 * count * 128 + slot * 128 + ((chunk ^ slot) & 7) * 16;
}
__device__ __forceinline__ int place_of_value(int slot, int chunk) { return slot * ROW_BYTES + ((chunk ^ (slot & 7)) * 16); }

// 16 bytes; zeros if not valid.
__device__ __forceinline__ void copy_chunk(uint32_t target, const uint4* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(valid ? 16 : 0) : "memory");
}

// By one warp: this block's prefix rows of one layer, a few KB at a time. They complete on `full`.
__device__ __forceinline__ void fetch_prefix(const Arguments& a, const Keys& keys, int layer, uint32_t k, uint64_t* full) {
  const uint32_t v = k + keys.bytes();
  const int lane = threadIdx.x % 32;
  const size_t base = (size_t)layer * a.capacity * CHUNKS + lane;
  for (int slot = SUFFIX_SHARE; slot < keys.count; slot++) {
    bool valid = slot < keys.prefix_end;
    size_t row = base + (valid ? keys.prefix_row(slot) : 0) * CHUNKS;
    copy_chunk(k + place_of_key(slot, lane, keys.count), a.prefix_k + row, valid);
    copy_chunk(v + place_of_value(slot, lane), a.prefix_v + row, valid);
    if (slot % 4 == 3) {
      commit_copies();
      wait_copies<1>();
    }
  }
  wait_copies<0>();
  fence_shared_for_tensor_cores();
  barrier_arrive(full);
}

__device__ __forceinline__ void load_four(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

__device__ __forceinline__ void load_four_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// Unnormalised sums of 32 rows and 16 of this warp's 32 dimensions, those of `part`: [row tile][dimension tile][accumulator].
template <int STEPS>
__device__ __forceinline__ void multiply_half_of_values(float (&out)[2][2][4], uint32_t probabilities, uint32_t values,
                                                        int part) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t a[2][2][4], b[2][4];
  const auto load = [&](int step) {
#pragma unroll
    for (int i = 0; i < 2; i++)
      load_four(a[step % 2][i], probabilities + (i * 16 + lane % 16) * (STEPS * 32 + 16) + step * 32 + lane / 16 * 16);
    load_four_transposed(b[step % 2], values + place_of_value(step * 16 + lane % 16, warp * 4 + part * 2 + lane / 16));
  };
  load(0);
#pragma unroll
  for (int step = 0; step < STEPS; step++) {
    if (step + 1 < STEPS) load(step + 1);
#pragma unroll
    for (int tile = 0; tile < 2; tile++)
#pragma unroll
      for (int d = 0; d < 2; d++) mma(out[tile][d], a[step % 2][tile], b[step % 2][d * 2], b[step % 2][d * 2 + 1]);
  }
}

// What of the softmax the warpgroups exchange: per row the maximum (times log2 e) and sum of what each has seen.
struct Rows {
  float top[2][QUERIES], sum[2][QUERIES];
};

// By the other two warps of a warpgroup: suffix rows of this block, from L2 to shared memory.
__device__ __forceinline__ void collect_suffix(const Arguments& a, int number, const Keys& keys, uint32_t k) {
  const int lane = threadIdx.x % 32, first = threadIdx.x / 128 * 4 + threadIdx.x / 32 % 2 * 2;
  const uint4 *own_k = reinterpret_cast<const uint4*>(a.keys), *own_v = reinterpret_cast<const uint4*>(a.values);
  const size_t row = (size_t)((number & 1) * ROWS + keys.suffix_row(first)) * CHUNKS + lane;
  uint4 k_rows[2] = {}, v_rows[2] = {};
  const int valid = keys.suffix_end - first;  // rows; none or both are, or one
  for (int patience = PATIENCE; valid > 0; patience--) {
    uint32_t top = 0;
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (i < valid) k_rows[i] = look(own_k + row + i * CHUNKS), v_rows[i] = look(own_v + row + i * CHUNKS);
#pragma unroll
    for (int i = 0; i < 2; i++) top = largest(largest(top, k_rows[i]), v_rows[i]);
    if (!__any_sync(0xffffffffu, top == PENDING)) break;
    if (patience == 0) __trap();
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    store_shared(k + place_of_key(first + i, lane, keys.count), k_rows[i]);
    store_shared(k + keys.bytes() + place_of_value(first + i, lane), v_rows[i]);
  }
  fence_shared_for_tensor_cores();
}

// This thread's logits of two rows and half of the keys become probabilities in shared memory. A row that sees nothing here gets
// NOTHING as its maximum, and merging gives it no weight.
template <int T>
__device__ __forceinline__ void soften(float (&logits)[T][4], const int (&suffix_end)[2], int prefix_end, Rows& rows,
                                       uint8_t* probabilities) {
  const int lane = threadIdx.x % 32, group = threadIdx.x / 128, first = group * T * 8 + lane % 4 * 2;
  const int query = threadIdx.x / 32 % 2 * 16 + lane / 4;
  float top[2] = {NOTHING, NOTHING}, sum[2] = {};
#pragma unroll
  for (int t = 0; t < T; t++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int slot = first + t * 8 + i % 2, end = group == 0 && t == 0 ? suffix_end[i / 2] : prefix_end;
      logits[t][i] = slot < end ? logits[t][i] * LOG2_E : NOTHING;
      top[i / 2] = fmaxf(top[i / 2], logits[t][i]);
    }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    top[half] = quad_max(top[half]);
    if (lane % 4 == 0) rows.top[group][query + half * 8] = top[half];
  }
  asm volatile("bar.sync 2, 128;" ::: "memory");
#pragma unroll
  for (int half = 0; half < 2; half++) {
    top[half] = fmaxf(top[half], rows.top[1 - group][query + half * 8]);
    uint32_t* target = reinterpret_cast<uint32_t*>(probabilities + (query + half * 8) * (T * 32 + 16) + first * 2);
#pragma unroll
    for (int t = 0; t < T; t++) {
      float x = exp2f(logits[t][half * 2] - top[half]), y = exp2f(logits[t][half * 2 + 1] - top[half]);
      sum[half] += x + y;
      target[t * 4] = pack_bf16(x, y);
    }
    sum[half] = quad_sum(sum[half]);
    if (lane % 4 == 0) rows.sum[group][query + half * 8] = sum[half];
  }
}

// Half of the unnormalised sums of 32 rows and this warp's dimensions, for block `warp` of the group: two neighbouring columns of two
// tiles of a row are 8 bytes. It is on its way while the other half is multiplied.
__device__ __forceinline__ void send_half_of_sums(const Arguments& a, int number, int rank, const float (&sums)[2][2][4],
                                                  int part) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = blockIdx.x / ATTENTION_CLUSTER;
  const size_t base = (((number & 1) * BLOCKS + group * ATTENTION_CLUSTER + warp) * ATTENTION_CLUSTER + rank) * 256 + lane;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float(&first)[4] = sums[i / 2][0], (&second)[4] = sums[i / 2][1];
    put_tagged(a.sums + base + (i / 2 * 4 + part * 2 + i % 2) * 32,
               make_uint2(pack_bf16(first[i % 2 * 2], first[i % 2 * 2 + 1]), pack_bf16(second[i % 2 * 2], second[i % 2 * 2 + 1])),
               tag_of(number));
  }
}

// Where in the output a thread's merged values belong: four columns of one row.
struct Merged {
  int row, column;
  bool used;
  __device__ Merged(int rows) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = blockIdx.x % ATTENTION_CLUSTER;
    int flat = blockIdx.x / ATTENTION_CLUSTER * QUERIES + warp / 4 * 16 + warp % 2 * 8 + lane / 4;
    row = flat % rows;
    column = flat / rows * DIM + rank * 32 + warp / 2 % 2 * 16 + lane % 4 * 2;
    used = flat < HEADS * rows;
  }
};

// Add up what the eight blocks of the group sent. log_sum: log2 of the sum of exponentials of the whole row.
__device__ __forceinline__ float4 merge_sums(const Arguments& a, int number, float& log_sum) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = number & 1;
  const int query = warp / 4 * 16 + warp % 2 * 8 + lane / 4;
  const uint2* sums = a.sums + ((size_t)half * BLOCKS + blockIdx.x) * ATTENTION_CLUSTER * 256 + warp * 32 + lane;
  const uint2* softmax = a.softmax + ((half * 16 + blockIdx.x / ATTENTION_CLUSTER) * ATTENTION_CLUSTER) * QUERIES + query;
  uint2 part[ATTENTION_CLUSTER], state[ATTENTION_CLUSTER];
  for (int patience = PATIENCE;; patience--) {
    look_all(part, sums, 256);
    look_all(state, softmax, QUERIES);
    if (!__any_sync(0xffffffffu, wrong_tags(part, tag_of(number)) | wrong_tags(state, tag_of(number)))) break;
    if (patience == 0) __trap();
  }
  float top = NOTHING, sum = 0, out[4] = {};
#pragma unroll
  for (int i = 0; i < ATTENTION_CLUSTER; i++) top = fmaxf(top, __uint_as_float(state[i].y));
#pragma unroll
  for (int i = 0; i < ATTENTION_CLUSTER; i++) {
    float weight = exp2f(__uint_as_float(state[i].y) - top);
    float2 first = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&part[i].x));
    float2 second = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&part[i].y));
    sum += weight * __uint_as_float(state[i].x);
    out[0] += weight * first.x, out[1] += weight * first.y, out[2] += weight * second.x, out[3] += weight * second.y;
  }
  log_sum = top + __log2f(sum);
  float factor = __fdividef(1.0f, sum);
  return make_float4(out[0] * factor, out[1] * factor, out[2] * factor, out[3] * factor);
}

// Each warpgroup multiplies half of the dimensions for all keys, and so reads half of the queries; then each gets the sums of
// half of the keys, as if it had multiplied those alone.
template <int T>
__device__ __forceinline__ void halved_logits(float (&logits)[T][4], const uint4 (&queries)[DIM / 32], uint32_t keys, int piece,
                                              bool asks, Exchange& exchange) {
  const int group = threadIdx.x / 128;
  float all[2 * T][4] = {};
  multiply_pieces<2 * T, DIM / 128>(all, queries, keys + group * (DIM / 128) * piece, piece);
  if (!asks) return;
  float4* sent = &exchange[0][0][0] + threadIdx.x / 32 % 2 * 32 + threadIdx.x % 32;  // [warpgroup][tile][64 threads]
#pragma unroll
  for (int t = 0; t < T; t++) {
    float given[4];
#pragma unroll
    for (int i = 0; i < 4; i++) given[i] = group ? all[t][i] : all[T + t][i];
    sent[(group * T + t) * 64] = make_float4(given[0], given[1], given[2], given[3]);
  }
  asm volatile("bar.sync 2, 128;" ::: "memory");
#pragma unroll
  for (int t = 0; t < T; t++) {
    const float4 other = sent[((1 - group) * T + t) * 64];
    const float rest[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
    for (int i = 0; i < 4; i++) logits[t][i] = (group ? all[T + t][i] : all[t][i]) + rest[i];
  }
}

template <class P>
__device__ __forceinline__ uint32_t* attended_half(const Arguments& a, int number) {
  return a.attended + (number & 1) * (ROWS * HEADS * DIM * P::SIZE / 4);
}

// resets: whether to reset what this thread wrote a layer before at `own`. memory: the keys, then the values. full, empty: of the
// prefix rows in it.
template <class P, int T>
__device__ __forceinline__ void attend(const Arguments& a, int layer, const Keys& keys, const Merged& place, Rows& rows,
                                       uint8_t* probabilities, uint32_t memory, uint64_t* full, uint64_t* empty, int first,
                                       const QkvPlace& own, bool resets, Exchange& exchange) {
  const int lane = threadIdx.x % 32, number = first + layer, group = blockIdx.x / ATTENTION_CLUSTER;
  const float inverse = a.scales[(a.layers + layer) * 4 + 1];
  // Operand A: 16 rows of queries a warp, in two warps of either warpgroup, one for each quarter of the multiprocessor; what the
  // other warps hold has no consequence.
  const bool asks = (threadIdx.x / 64 & 1) == threadIdx.x / 128;
  constexpr bool HALVED = T <= 5;
  constexpr int STEPS = HALVED ? DIM / 32 : DIM / 16;
  uint4 queries[STEPS] = {};
  if (asks) {
    const uint4* source = reinterpret_cast<const uint4*>(a.queries) +
                          (((number & 1) * 16 + group) * 2 + threadIdx.x / 32 % 2) * (DIM / 16) * 32 + lane;
    if (HALVED) source += threadIdx.x / 128 * STEPS * 32;
    await_sign(source + (STEPS - 1) * 32);
#pragma unroll
    for (int i = 0; i < STEPS; i++) queries[i] = look(source + i * 32);
    await(queries, source, 32);
  } else {
    collect_suffix(a, number, keys, memory);
  }
  barrier_wait(full, (KEEPING ? layer : number) & 1);
  block_barrier();
  STAMP(a, layer, 3);
  if (resets) own.reset(number);
  float logits[T][4] = {};
  if constexpr (HALVED) halved_logits(logits, queries, memory, keys.count * 128, asks, exchange);
  else multiply_pieces<T, DIM / 64>(logits, queries, memory + threadIdx.x / 128 * T * 1024, keys.count * 128);
  STAMP(a, layer, 4);
  if (asks) {
    int suffix_end[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int flat = group * QUERIES + threadIdx.x / 32 % 2 * 16 + half * 8 + lane / 4;
      bool alone = a.state_token && flat % a.rows == 0;
      suffix_end[half] = alone ? min(keys.suffix_end, keys.rank == 0) : keys.suffix_end;
    }
    soften(logits, suffix_end, keys.prefix_end, rows, probabilities);
  }
  block_barrier();
  if (threadIdx.x < QUERIES)
    put_tagged(a.softmax + (((number & 1) * 16 + group) * ATTENTION_CLUSTER + keys.rank) * QUERIES + threadIdx.x,
               make_uint2(__float_as_uint(rows.sum[0][threadIdx.x] + rows.sum[1][threadIdx.x]),
                          __float_as_uint(fmaxf(rows.top[0][threadIdx.x], rows.top[1][threadIdx.x]))),
               tag_of(number));
#pragma unroll
  for (int part = 0; part < 2; part++) {
    float sums[2][2][4] = {};
    multiply_half_of_values<T>(sums, shared_address(probabilities), memory + keys.bytes(), part);
    send_half_of_sums(a, number, keys.rank, sums, part);
  }
  STAMP(a, layer, 5);
  float log_sum;
  float4 merged = merge_sums(a, number, log_sum);
  if (lane == 0) barrier_arrive(empty);
  if (place.used)
    store_accumulator(P(), place.row, place.column,
                      make_float4(merged.x * inverse, merged.y * inverse, merged.z * inverse, merged.w * inverse),
                      [&](int i, uint32_t word) {
                        uint32_t* half = attended_half<P>(a, number);
                        put(half + i, word);
                        set_pending(attended_half<P>(a, number + 1) + i);
                      });
#ifdef KEEPS
  if (place.used) {
    const int warp = threadIdx.x / 32, tile = group * 2 + warp / 4, step = keys.rank * 2 + warp / 2 % 2, half = warp % 2;
    const int flat = layer * HEADS * ROWS + tile * 16 + half * 8 + lane / 4;
    a.kept.attended[(((layer * HEADS * ROW_TILES + tile) * (DIM / 16) + step) * 32 + lane) * 2 + half] =
        make_uint2(pack_bf16(merged.x, merged.y), pack_bf16(merged.z, merged.w));
    if (step == 0 && lane % 4 == 0) a.kept.log_sums[flat] = log_sum;
  }
#endif
  STAMP(a, layer, 6);
}
