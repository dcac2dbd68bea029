// Attention of the action expert: 8 query heads on one K/V head of 256, over a prefix of device-side length and the suffix.
// Architectures: 90a
//
// q: fragments written by expert_qkv.cu over flat rows head * rows + row, scaled by 1/16. prefix_k, prefix_v: bf16 [capacity][256] with
// *length valid rows, rotated; suffix_k, suffix_v: bf16 [64][256] with `rows` valid rows. With state_token, row 0 sees of the suffix only
// itself (pi0). out: fragments of K = 2048 in accumulator order, bf16, or e4m3 of value * *inverse_scale, saturated.
// Logits, softmax and sums in fp32; probabilities and the operands of both products in bf16.
//
// A cluster of 8 blocks takes 32 flat rows; each block takes an eighth of the keys: `share` prefix keys and 8 suffix keys, of which the
// prefix part is copied to shared memory before the wait. Partial results meet over distributed shared memory: warp w of each
// block holds dimensions 32 w .. of the sum and sends them to block w, which merges and writes them.
// Shared memory: see expert_attention_bytes in engine/expert.py. Bytes: 0.6 MB of K/V from DRAM, 13 times that from L2.
#include "expert_common.cuh"

constexpr int CLUSTER = 8, QUERIES = 32, SUFFIX_SHARE = ROWS / CLUSTER, MAX_KEYS = 160;
constexpr int ROW_BYTES = DIM * 2, CHUNKS = ROW_BYTES / 16;
constexpr float LOG2_E = 1.4426950408889634f, NOTHING = -1e30f;

struct Shared {
  float4 partial[CLUSTER][8][32];         // [source][row tile * 4 + dimension tile][lane]
  float2 softmax[CLUSTER][QUERIES];       // maximum of the logits, sum of exponentials
};

// What this block sees of the keys, and where it keeps them.
struct Keys {
  int share, count, length, rows, rank;   // prefix keys a block; slots (a multiple of 16); valid prefix and suffix rows
  // Slots 0..7 are suffix rows, then come `share` prefix rows.
  __device__ int suffix_row(int slot) const { return rank * SUFFIX_SHARE + slot; }
  __device__ int prefix_row(int slot) const { return rank * share + slot - SUFFIX_SHARE; }
  __device__ bool has_prefix(int slot) const { return slot - SUFFIX_SHARE < share && prefix_row(slot) < length; }
  __device__ bool visible(int slot, int row, bool state_token) const {
    if (slot >= SUFFIX_SHARE) return has_prefix(slot);
    return suffix_row(slot) < rows && !(state_token && row == 0 && suffix_row(slot) > 0);
  }
};

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

// Logits of 16 rows (warp % 2) and every fourth tile of 8 keys, to shared memory.
__device__ __forceinline__ void multiply_keys(const uint4 (&q)[16], uint32_t keys, float* logits, int stride, int count) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int tile = warp / 2; tile < count / 8; tile += 4) {
    float even[4] = {}, odd[4] = {};
#pragma unroll
    for (int pair = 0; pair < 8; pair++) {
      uint32_t b[4];
      load_four(b, keys + swizzled(tile * 8 + lane % 8, pair * 4 + lane / 8));
      mma(even, {q[2 * pair].x, q[2 * pair].y, q[2 * pair].z, q[2 * pair].w}, b[0], b[1]);
      mma(odd, {q[2 * pair + 1].x, q[2 * pair + 1].y, q[2 * pair + 1].z, q[2 * pair + 1].w}, b[2], b[3]);
    }
    float* target = logits + (warp % 2 * 16 + lane / 4) * stride + tile * 8 + lane % 4 * 2;
    *reinterpret_cast<float2*>(target) = make_float2(even[0] + odd[0], even[1] + odd[1]);
    *reinterpret_cast<float2*>(target + 8 * stride) = make_float2(even[2] + odd[2], even[3] + odd[3]);
  }
}

// Softmax numerators of four rows a warp, in place: fp32 logits become bf16 at the start of their row.
__device__ __forceinline__ float2 exponentials(float* logits, const Keys& keys, int row, bool state_token) {
  const int lane = threadIdx.x % 32;
  float value[MAX_KEYS / 32], top = NOTHING, sum = 0;
#pragma unroll
  for (int i = 0; i < MAX_KEYS / 32; i++) {
    int slot = i * 32 + lane;
    value[i] = slot < keys.count && keys.visible(slot, row, state_token) ? logits[slot] * LOG2_E : NOTHING;
    top = fmaxf(top, value[i]);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
#pragma unroll
  for (int i = 0; i < MAX_KEYS / 32; i++) {
    int slot = i * 32 + lane;
    float p = value[i] == NOTHING ? 0.0f : exp2f(value[i] - top);
    sum += p;
    if (slot < keys.count) reinterpret_cast<bf16*>(logits)[slot] = __float2bfloat16(p);
  }
  return make_float2(top, warp_sum(sum));
}

// Unnormalised sums of 32 rows and this warp's 32 dimensions: [row tile][dimension tile][accumulator].
__device__ __forceinline__ void multiply_values(float (&out)[2][4][4], uint32_t probabilities, int stride_bytes, uint32_t values,
                                                int count) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int step = 0; step < count / 16; step++) {
    uint32_t a[2][4], b[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      load_four(a[i], probabilities + (i * 16 + lane % 16) * stride_bytes + step * 32 + lane / 16 * 16);
      load_four_transposed(b[i], values + swizzled(step * 16 + lane % 16, warp * 4 + i * 2 + lane / 16));
    }
#pragma unroll
    for (int tile = 0; tile < 2; tile++)
#pragma unroll
      for (int d = 0; d < 4; d++) mma(out[tile][d], a[tile], b[d / 2][d % 2 * 2], b[d / 2][d % 2 * 2 + 1]);
  }
}

template <class P>
__device__ __forceinline__ void attend(const uint4* q, const uint4* prefix_k, const uint4* prefix_v, const uint4* suffix_k,
                                       const uint4* suffix_v, const int* length, int rows, bool state_token,
                                       const float* inverse_scale, uint8_t* out, const uint8_t* later, int later_bytes) {
  extern __shared__ __align__(128) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, block = blockIdx.x / CLUSTER;
  if (threadIdx.x == 0) prefetch_later(later, later_bytes);
  cluster_arrive();
  Keys keys{0, 0, *length, rows, (int)cluster_rank()};
  keys.share = (keys.length + 8 * CLUSTER - 1) / (8 * CLUSTER) * 8;
  keys.count = (keys.share + SUFFIX_SHARE + 15) / 16 * 16;
  const int stride = keys.count + 4;
  float* logits = reinterpret_cast<float*>(memory + sizeof(Shared));
  const uint32_t k = shared_address(logits) + QUERIES * stride * 4, v = k + keys.count * ROW_BYTES;
  for (int slot = SUFFIX_SHARE + warp; slot < keys.count; slot += 8) {
    bool valid = keys.has_prefix(slot);
    size_t row = valid ? keys.prefix_row(slot) : 0;
    copy_row(k, prefix_k + row * CHUNKS, slot, valid);
    copy_row(v, prefix_v + row * CHUNKS, slot, valid);
  }
  const float inverse = *inverse_scale;
  cluster_wait();
  release_successor();
  wait_for_predecessor();

  bool valid = keys.suffix_row(warp) < rows;
  copy_row(k, suffix_k + keys.suffix_row(warp) * CHUNKS, warp, valid);
  copy_row(v, suffix_v + keys.suffix_row(warp) * CHUNKS, warp, valid);
  commit_copies();
  uint4 fragments[16];
#pragma unroll
  for (int i = 0; i < 16; i++) fragments[i] = __ldcg(q + ((block * 2 + warp % 2) * 16 + i) * 32 + lane);
  wait_copies<0>();
  __syncthreads();
  multiply_keys(fragments, k, logits, stride, keys.count);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int query = warp * 4 + i;
    float2 result = exponentials(logits + query * stride, keys, (block * QUERIES + query) % rows, state_token);
    if (lane < CLUSTER) store_peer(peer_address(&shared.softmax[keys.rank][query], lane), result.x, result.y);
  }
  __syncthreads();
  float sums[2][4][4] = {};
  multiply_values(sums, shared_address(logits), stride * 4, v, keys.count);
  uint32_t target = peer_address(&shared.partial[keys.rank][0][lane], warp);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float* s = sums[i / 4][i % 4];
    store_peer(target + i * 512, make_float4(s[0], s[1], s[2], s[3]));
  }
  cluster_arrive();
  cluster_wait();

#pragma unroll
  for (int half = 0; half < 2; half++) {
    int query = warp / 4 * 16 + half * 8 + lane / 4, flat = block * QUERIES + query;
    float top = NOTHING, sum = 0, a = 0, b = 0;
#pragma unroll
    for (int source = 0; source < CLUSTER; source++) top = fmaxf(top, shared.softmax[source][query].x);
#pragma unroll
    for (int source = 0; source < CLUSTER; source++) {
      float2 part = shared.softmax[source][query];
      float weight = exp2f(part.x - top);
      float2 pair = reinterpret_cast<const float2*>(&shared.partial[source][warp][lane])[half];
      sum += weight * part.y;
      a += weight * pair.x;
      b += weight * pair.y;
    }
    float factor = inverse / sum;
    if (flat < HEADS * rows)
      store_accumulator(P(), out, flat % rows, flat / rows * DIM + keys.rank * 32 + warp % 4 * 8 + lane % 4 * 2, a * factor,
                        b * factor);
  }
}

#define KERNEL(NAME, P)                                                                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                                     \
      NAME(const uint4* q, const uint4* prefix_k, const uint4* prefix_v, const uint4* suffix_k, const uint4* suffix_v,         \
           const int* length, int rows, int state_token, const float* inverse_scale, uint8_t* out, const uint8_t* later,       \
           int later_bytes) {                                                                                                  \
    attend<P>(q, prefix_k, prefix_v, suffix_k, suffix_v, length, rows, state_token, inverse_scale, out, later, later_bytes);   \
  }
KERNEL(expert_attention_bf16, Bf16)
KERNEL(expert_attention_fp8, Fp8)
