// Attention of the action expert: 8 query heads on one K/V head of 256, over a prefix of device-side length and the suffix.
// Architectures: 90a
//
// q: fragments written by expert_qkv.cu over flat rows head * rows + row, scaled by 1/16. prefix_k, prefix_v: bf16 [capacity][256]
// with *length valid rows, rotated; suffix_k, suffix_v: bf16 [64][256] with `rows` valid rows. With state_token, row 0 sees of the
// suffix only itself (pi0). out: fragments of K = 2048 in accumulator order, bf16, or e4m3 of value * *inverse_scale, saturated.
// Logits, softmax and sums in fp32; in bf16: the operands of both products, probabilities, and the sums that blocks exchange.
//
// A cluster of 8 blocks takes 32 flat rows; each block takes an eighth of the keys: `share` prefix keys and 8 suffix keys, of which
// the prefix part is copied to shared memory before the wait. Partial results meet over distributed shared memory: warp w of each
// block holds dimensions 32 w .. of the sum and sends them to block w, which merges and writes them.
// While it computes, memory is idle: then it has the weights of a later kernel (later_bytes a block) brought into L2.
// Shared memory: attention_bytes in engine/expert_buffers.py. Bytes: 0.6 MB of K/V from DRAM, 13 times that from L2.
#include "expert_common.cuh"

constexpr int CLUSTER = 8, QUERIES = 32, SUFFIX_SHARE = ROWS / CLUSTER, MAX_KEYS = 160;
constexpr int ROW_BYTES = DIM * 2, CHUNKS = ROW_BYTES / 16;
constexpr float LOG2_E = 1.4426950408889634f, NOTHING = -1e30f;

struct Partial {
  uint4 v[CLUSTER][4][32];  // [source][pair of accumulator tiles][lane], bf16: a lane's 4 values of one tile, then of the next
};

struct Shared {
  uint4 queries[2][DIM / 16][32];
  float2 softmax[CLUSTER][QUERIES];  // maximum of the logits, sum of exponentials
  uint64_t arrived;
};

// What this block sees of the keys: slots 0..7 are its suffix rows, then come its `share` prefix rows.
struct Keys {
  int share, count, rank;     // prefix rows a block; slots (a multiple of 16)
  int suffix_end, prefix_end;  // first slot behind the valid suffix rows, and behind the valid prefix rows
  __device__ int suffix_row(int slot) const { return rank * SUFFIX_SHARE + slot; }
  __device__ int prefix_row(int slot) const { return rank * share + slot - SUFFIX_SHARE; }
};

__device__ __forceinline__ Keys share_keys(int length, int rows) {
  Keys keys;
  keys.rank = cluster_rank();
  keys.share = (length + 8 * CLUSTER - 1) / (8 * CLUSTER) * 8;
  keys.count = (keys.share + SUFFIX_SHARE + 15) / 16 * 16;
  keys.suffix_end = min(SUFFIX_SHARE, rows - keys.rank * SUFFIX_SHARE);
  keys.prefix_end = SUFFIX_SHARE + max(0, min(keys.share, length - keys.rank * keys.share));
  return keys;
}

__device__ __forceinline__ int swizzled(int slot, int chunk) { return slot * ROW_BYTES + ((chunk ^ (slot & 7)) * 16); }

// One row by one warp, 16 bytes a lane; zeros if not valid.
__device__ __forceinline__ void copy_row(uint32_t target, const uint4* source, int slot, bool valid) {
  int lane = threadIdx.x % 32;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target + swizzled(slot, lane)), "l"(source + lane),
               "r"(valid ? 16 : 0)
               : "memory");
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

// Logits of 16 rows (warp % 2) and every fourth tile of 8 keys, to shared memory; three tiles at a time, for independent products.
__device__ __forceinline__ void multiply_keys(const Shared& shared, uint32_t keys, float* logits, int stride, int count) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, last = count / 8 - 1;
#pragma unroll 1
  for (int first = warp / 2; first <= last; first += 12) {
    float even[3][4] = {}, odd[3][4] = {};
#pragma unroll
    for (int pair = 0; pair < 8; pair++) {
      uint4 low = shared.queries[warp % 2][2 * pair][lane], high = shared.queries[warp % 2][2 * pair + 1][lane];
#pragma unroll
      for (int i = 0; i < 3; i++) {
        uint32_t b[4];
        load_four(b, keys + swizzled(min(first + 4 * i, last) * 8 + lane % 8, pair * 4 + lane / 8));
        mma(even[i], {low.x, low.y, low.z, low.w}, b[0], b[1]);
        mma(odd[i], {high.x, high.y, high.z, high.w}, b[2], b[3]);
      }
    }
#pragma unroll
    for (int i = 0; i < 3; i++) {
      if (first + 4 * i > last) continue;
      float* target = logits + (warp % 2 * 16 + lane / 4) * stride + (first + 4 * i) * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(target) = make_float2(even[i][0] + odd[i][0], even[i][1] + odd[i][1]);
      *reinterpret_cast<float2*>(target + 8 * stride) = make_float2(even[i][2] + odd[i][2], even[i][3] + odd[i][3]);
    }
  }
}

// Softmax numerators of one row by eight lanes, in place: fp32 logits become bf16 at the start of their row.
// Returns the row's maximum (times log2 e) and the sum of the numerators. A row that sees nothing here returns NOTHING as its
// maximum, and merging gives it no weight.
__device__ __forceinline__ float2 exponentials(float* logits, int count, int suffix_end, int prefix_end) {
  constexpr int PAIRS = MAX_KEYS / 16;
  const int lane = threadIdx.x % 8;
  float2 value[PAIRS];
  float top = NOTHING, sum = 0;
#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    int slot = (i * 8 + lane) * 2;
    int end = i == 0 && slot < SUFFIX_SHARE ? suffix_end : prefix_end;
    float2 logit = slot < count ? *reinterpret_cast<const float2*>(logits + slot) : make_float2(0, 0);
    value[i].x = slot < end ? logit.x * LOG2_E : NOTHING;
    value[i].y = slot + 1 < end ? logit.y * LOG2_E : NOTHING;
    top = fmaxf(top, fmaxf(value[i].x, value[i].y));
  }
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    int slot = (i * 8 + lane) * 2;
    float a = exp2f(value[i].x - top), b = exp2f(value[i].y - top);
    sum += a + b;
    if (slot < count) reinterpret_cast<uint32_t*>(logits)[slot / 2] = pack_bf16(a, b);
  }
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  return make_float2(top, sum);
}

// Operands of one step of 16 keys: probabilities of both row tiles, values of this warp's 32 dimensions.
struct Operands {
  uint32_t a[2][4], b[2][4];
};

__device__ __forceinline__ void load_operands(Operands& o, uint32_t probabilities, int stride_bytes, uint32_t values, int step) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    load_four(o.a[i], probabilities + (i * 16 + lane % 16) * stride_bytes + step * 32 + lane / 16 * 16);
    load_four_transposed(o.b[i], values + swizzled(step * 16 + lane % 16, warp * 4 + i * 2 + lane / 16));
  }
}

// Unnormalised sums of 32 rows and this warp's 32 dimensions: [row tile][dimension tile][accumulator].
__device__ __forceinline__ void multiply_values(float (&out)[2][4][4], uint32_t probabilities, int stride_bytes, uint32_t values,
                                                int count) {
  Operands now, next;
  load_operands(now, probabilities, stride_bytes, values, 0);
#pragma unroll 1
  for (int step = 0; step < count / 16; step++) {
    load_operands(next, probabilities, stride_bytes, values, min(step + 1, count / 16 - 1));
#pragma unroll
    for (int tile = 0; tile < 2; tile++)
#pragma unroll
      for (int d = 0; d < 4; d++) mma(out[tile][d], now.a[tile], now.b[d / 2][d % 2 * 2], now.b[d / 2][d % 2 * 2 + 1]);
    now = next;
  }
}

// Add up what the eight blocks sent, for one row and two dimensions. `place` is 0 for lane / 4, 1 for lane / 4 + 8.
template <class P>
__device__ __forceinline__ void merge(const Shared& shared, const Partial& partial, int place, int row, int column, float inverse,
                                      uint8_t* out) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, query = warp / 4 * 16 + place * 8 + lane / 4;
  float2 softmax[CLUSTER];
  float top = NOTHING, sum = 0, a = 0, b = 0;
#pragma unroll
  for (int source = 0; source < CLUSTER; source++) {
    softmax[source] = shared.softmax[source][query];
    top = fmaxf(top, softmax[source].x);
  }
#pragma unroll
  for (int source = 0; source < CLUSTER; source++) {
    float weight = exp2f(softmax[source].x - top);
    uint32_t packed = reinterpret_cast<const uint32_t*>(&partial.v[source][warp / 2][lane])[warp % 2 * 2 + place];
    float2 pair = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&packed));
    sum += weight * softmax[source].y;
    a += weight * pair.x;
    b += weight * pair.y;
  }
  float factor = __fdividef(inverse, sum);
  store_accumulator(P(), out, row, column, a * factor, b * factor);
}

template <class P>
__device__ __forceinline__ void attend(const uint4* q, const uint4* prefix_k, const uint4* prefix_v, const uint4* suffix_k,
                                       const uint4* suffix_v, const int* length, int rows, bool state_token,
                                       const float* inverse_scale, uint8_t* out, const uint8_t* later, int later_bytes) {
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ Shared shared;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, block = blockIdx.x / CLUSTER;
  if (threadIdx.x == 0) expect_bytes(&shared.arrived, sizeof(Partial) + sizeof(shared.softmax));
  cluster_arrive();
  const Keys keys = share_keys(*length, rows);
  const int stride = keys.count + 4;
  Partial& partial = *reinterpret_cast<Partial*>(memory);  // takes the place of the keys once all logits are known
  const uint32_t k = shared_address(memory), v = k + max(keys.count * ROW_BYTES, (int)sizeof(Partial));
  float* logits = reinterpret_cast<float*>(memory + (v - k) + keys.count * ROW_BYTES);
  for (int slot = SUFFIX_SHARE + warp; slot < keys.count; slot += 8) {
    bool valid = slot < keys.prefix_end;
    size_t row = valid ? keys.prefix_row(slot) : 0;
    copy_row(k, prefix_k + row * CHUNKS, slot, valid);
    copy_row(v, prefix_v + row * CHUNKS, slot, valid);
  }
  const float inverse = *inverse_scale;
  const int query = warp * 4 + lane / 8;
  const bool alone = state_token && (block * QUERIES + query) % rows == 0;
  const int suffix_end = alone ? min(keys.suffix_end, keys.rank == 0) : keys.suffix_end;
  int row[2], column[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int flat = block * QUERIES + warp / 4 * 16 + i * 8 + lane / 4;
    row[i] = flat % rows;
    column[i] = flat / rows * DIM + keys.rank * 32 + warp % 4 * 8 + lane % 4 * 2;
  }
  cluster_wait();
  release_successor();
  wait_for_predecessor();

  uint4* queries = &shared.queries[0][0][0];
#pragma unroll
  for (int i = 0; i < 4; i++)
    copy_async(queries + i * THREADS + threadIdx.x, q + block * 2 * DIM / 16 * 32 + i * THREADS + threadIdx.x);
  bool valid = warp < keys.suffix_end;
  copy_row(k, suffix_k + keys.suffix_row(warp) * CHUNKS, warp, valid);
  copy_row(v, suffix_v + keys.suffix_row(warp) * CHUNKS, warp, valid);
  commit_copies();
  wait_copies<0>();
  if (threadIdx.x == 0) prefetch_later(later, later_bytes);
  __syncthreads();
  multiply_keys(shared, k, logits, stride, keys.count);
  cluster_arrive();
  __syncthreads();
  float2 result = exponentials(logits + query * stride, keys.count, suffix_end, keys.prefix_end);
  __syncthreads();
  float sums[2][4][4] = {};
  multiply_values(sums, shared_address(logits), stride * 4, v, keys.count);
  cluster_wait();  // every block has read its keys
  send(peer_address(&shared.softmax[keys.rank][query], lane % 8), peer_address(&shared.arrived, lane % 8), result.x, result.y);
  uint32_t target = peer_address(&partial.v[keys.rank][0][lane], warp), arrived = peer_address(&shared.arrived, warp);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float(&first)[4] = sums[i / 2][i % 2 * 2], (&second)[4] = sums[i / 2][i % 2 * 2 + 1];
    send(target + i * 512, arrived, pack_bf16(first[0], first[1]), pack_bf16(first[2], first[3]), pack_bf16(second[0], second[1]),
         pack_bf16(second[2], second[3]));
  }
  wait_for_bytes(&shared.arrived);
#pragma unroll
  for (int i = 0; i < 2; i++)
    if (column[i] < HEADS * DIM) merge<P>(shared, partial, i, row[i], column[i], inverse, out);
}

#define KERNEL(NAME, P) \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) \
      NAME(const uint4* q, const uint4* prefix_k, const uint4* prefix_v, const uint4* suffix_k, const uint4* suffix_v, \
           const int* length, int rows, int state_token, const float* inverse_scale, uint8_t* out, const uint8_t* later, \
           int later_bytes) { \
    attend<P>(q, prefix_k, prefix_v, suffix_k, suffix_v, length, rows, state_token, inverse_scale, out, later, later_bytes); \
  }
KERNEL(expert_attention_bf16, Bf16)
KERNEL(expert_attention_fp8, Fp8)
