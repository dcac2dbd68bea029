// A projection back to the residual stream of the action expert, the gated residual, and the next norm's preparation.
//
// x += gate * (fragments W * column_scale * activation_scale), fp32 [64][1024].
// fragments: K = 2048 (attention output), 4096 (hidden layer) or 1024 (pi0's action embedding).
// Then, for the norm that follows: statistics[32][64], sums of squares over 32 columns each, and x * next_scale (its 1 + scale)
// as fragments in linear order: bf16, or e4m3 of that times the inverse scale, saturated. Row tiles of 16 beyond `rows` are not
// written.
//
// 32 groups of 4 blocks: a group owns 32 columns, a block a quarter of K and, in the end, 16 of the rows, which its first
// 128 threads hold in registers from layer to layer: thread t the columns 4 (t % 8) .. of row t / 8. Each warp sends its 16 rows
// of partial sums to the block that finishes them: 4 partial sums a value.
#pragma once
#include "expert_norm.cuh"

constexpr int RESIDUAL_COLUMNS = 32, GROUP = 4, TILES = RESIDUAL_COLUMNS / 8;

__device__ __forceinline__ float4 operator+(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
__device__ __forceinline__ float4 operator*(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
__device__ __forceinline__ float4 operator*(float4 a, float b) { return make_float4(a.x * b, a.y * b, a.z * b, a.w * b); }

// The part of the residual stream that a thread of the first warpgroup keeps.
struct Place {
  int row, column;
  bool used, live;  // in a row tile that is used; a row that is
  __device__ Place(int rows)
      : row(blockIdx.x % GROUP * 16 + threadIdx.x / 8), column(blockIdx.x / GROUP * RESIDUAL_COLUMNS + threadIdx.x % 8 * 4),
        used(threadIdx.x < 128 && blockIdx.x % GROUP * 16 < rows), live(used && row < rows) {}
};

// What distinguishes the projections back to the residual stream.
struct Residual {
  const uint32_t* in;        // fragments, both halves
  const float *column_scale, *gate, *next_scale;
  float activation_scale, next_inverse;
  uint4* parts;
  int parts_number, out_number;  // whose halves
  const Normed* out;
  int norm;         // of the step, the one behind
  bool writes_out;  // or only resets the other half
};

// Send this warp's 16 rows of two tiles of partial sums, four neighbouring columns a lane.
#if SHORT_PARTS
constexpr int PART_WRITERS = SHORT_PARTS == 2 ? 2 * GROUP : GROUP;
template <int N>
__device__ __forceinline__ void send_parts(const float (&sums)[N], uint4* parts, int number) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, odd = lane % 2, group = threadIdx.x / 128;
  const int writer = SHORT_PARTS == 2 ? blockIdx.x % GROUP * 2 + group : blockIdx.x % GROUP;
  uint2* target = reinterpret_cast<uint2*>(parts) +
                  (((size_t)(number & 1) * BLOCKS + blockIdx.x / GROUP * GROUP + warp) * PART_WRITERS + writer) * 128 +
                  (lane / 4 + odd * 8) * 8 + (SHORT_PARTS == 2 ? 0 : group * (TILES / 2) * 2) + lane % 4 / 2;
#pragma unroll
  for (int i = 0; i < N / 4; i++) {
    const uint32_t upper = pack_bf16(sums[i * 4], sums[i * 4 + 1]), lower = pack_bf16(sums[i * 4 + 2], sums[i * 4 + 3]);
    const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? upper : lower, 1);
    put_tagged(target + 2 * i, odd ? make_uint2(got, lower) : make_uint2(upper, got), tag_of(number));
  }
}

__device__ __forceinline__ float4 gather_parts(const uint4* parts, int number, int& looks) {
  const uint2* own =
      reinterpret_cast<const uint2*>(parts) + ((size_t)(number & 1) * BLOCKS + blockIdx.x) * PART_WRITERS * 128 + threadIdx.x;
  uint2 v[PART_WRITERS];
  looks = await_tagged(v, own, 128, tag_of(number));
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int i = 0; i < PART_WRITERS; i++) {
    const float2 low = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&v[i].x));
    const float2 high = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&v[i].y));
    sum = sum + make_float4(low.x, low.y, high.x, high.y);
  }
  return sum;
}
#else
__device__ __forceinline__ void send_parts(const float (&sums)[RESIDUAL_COLUMNS / 4], uint4* parts, int number) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, odd = lane % 2;
  uint4* target = parts + (((size_t)(number & 1) * BLOCKS + blockIdx.x / GROUP * GROUP + warp) * GROUP + blockIdx.x % GROUP) * 128 +
                  (lane / 4 + odd * 8) * 8 + threadIdx.x / 128 * (TILES / 2) * 2 + lane % 4 / 2;
#pragma unroll
  for (int i = 0; i < TILES / 2; i++) {
    float k0 = odd ? sums[i * 4 + 2] : sums[i * 4], k1 = odd ? sums[i * 4 + 3] : sums[i * 4 + 1];
    float g0 = odd ? sums[i * 4] : sums[i * 4 + 2], g1 = odd ? sums[i * 4 + 1] : sums[i * 4 + 3];
    float r0 = __shfl_xor_sync(0xffffffffu, g0, 1), r1 = __shfl_xor_sync(0xffffffffu, g1, 1);
    uint4 v = odd ? make_uint4(__float_as_uint(r0), __float_as_uint(r1), __float_as_uint(k0), __float_as_uint(k1))
                  : make_uint4(__float_as_uint(k0), __float_as_uint(k1), __float_as_uint(r0), __float_as_uint(r1));
    put_tagged(target + 2 * i, v, tag_of(number));
  }
}

__device__ __forceinline__ float4 gather_parts(const uint4* parts, int number, int& looks) {
  const uint4* own = parts + ((size_t)(number & 1) * BLOCKS + blockIdx.x) * GROUP * 128 + threadIdx.x;
  uint4 v[GROUP];
  looks = await_tagged(v, own, 128, tag_of(number));
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int i = 0; i < GROUP; i++)
    sum = sum + make_float4(__uint_as_float(v[i].x), __uint_as_float(v[i].y), __uint_as_float(v[i].z), __uint_as_float(v[i].w));
  return sum;
}

#endif

// x: this thread's part of the residual stream.
template <class In, class Out, int K>
__device__ __forceinline__ void project_back(const Arguments& a, const Residual& r, Stream& stream,
                                             Exchange& exchange, const Place& place, int fragment, float4& x, int layer,
                                             int point) {
  constexpr int STEPS = K / In::STEP / GROUP, SLOTS = STEPS * RESIDUAL_COLUMNS * 32 / SLOT / 2;
  float4 factor = make_float4(0, 0, 0, 0), next_factor = factor;
#if LEAN
  // Multiplied only behind the product, so that nothing waits for them before.
  float4 column_scale = factor, gate = make_float4(1, 1, 1, 1);
  float activation_scale = r.activation_scale, next_inverse = r.next_inverse;
  if (place.used) {
    column_scale = *reinterpret_cast<const float4*>(r.column_scale + place.column);
    if (r.gate) gate = *reinterpret_cast<const float4*>(r.gate + place.column);
    next_factor = *reinterpret_cast<const float4*>(r.next_scale + place.column);
  }
#else
  if (place.used) {
    factor = *reinterpret_cast<const float4*>(r.column_scale + place.column) * r.activation_scale;
    if (r.gate) factor = factor * *reinterpret_cast<const float4*>(r.gate + place.column);
    next_factor = *reinterpret_cast<const float4*>(r.next_scale + place.column) * r.next_inverse;
  }
#endif
  float accumulator[RESIDUAL_COLUMNS / 2];
  const uint4* fragments = reinterpret_cast<const uint4*>(r.in) + blockIdx.x % GROUP * STEPS * STEP_FRAGMENTS + fragment;
  multiply<In, RESIDUAL_COLUMNS, SLOTS>(accumulator, fragments, stream, [] {});
  STAMP(a, layer, point);
  NOTE(record(a, layer, point == 7 ? 2 : 4, stream.signed_at - stream.entered, stream.looks, stream.loaded_at - stream.signed_at, stream.again));
#if SHORT_PARTS == 2
  if (threadIdx.x % 128 / 32 * 16 < a.rows) send_parts(accumulator, r.parts, r.parts_number);
#else
  float sums[RESIDUAL_COLUMNS / 4];
  add_groups(sums, accumulator, exchange);
  if (threadIdx.x % 128 / 32 * 16 < a.rows) send_parts(sums, r.parts, r.parts_number);
#endif
  if (!place.used) return;

#if LEAN
  factor = column_scale * activation_scale * gate;
  next_factor = next_factor * next_inverse;
#endif
  NOTE(const auto sent = now());
  int looks;
  x = x + gather_parts(r.parts, r.parts_number, looks) * factor;
  STAMP(a, layer, point + 1);
  NOTE(record(a, layer, point == 7 ? 5 : 6, 0, 0, now() - sent, looks));
  float square = x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) square += __shfl_xor_sync(0xffffffffu, square, offset);
  if (!place.live) return;
  constexpr int HALF_WORDS = ROWS * WIDTH * Out::SIZE / 4, HALF_STATISTICS = STATISTICS * ROWS;
  const int mine = r.out_number & 1, other = mine ^ 1;
  uint32_t* statistic = r.out->statistics + blockIdx.x / GROUP * ROWS + place.row;
  if (r.writes_out) {
    uint32_t* next = r.out->fragments + mine * HALF_WORDS;
    store_linear(Out(), place.row, place.column, x * next_factor, [=](int i, uint32_t word) { put(next + i, word); });
    if (threadIdx.x % 8 == 0) put(statistic + mine * HALF_STATISTICS, __float_as_uint(square));
  }
  uint32_t* last = r.out->fragments + other * HALF_WORDS;
  store_linear(Out(), place.row, place.column, x, [=](int i, uint32_t) { set_pending(last + i); });
  if (threadIdx.x % 8 == 0) set_pending(statistic + other * HALF_STATISTICS);
#ifdef KEEPS
  *reinterpret_cast<float4*>(a.kept.x + (r.norm * ROWS + place.row) * WIDTH + place.column) = x;
#endif
  STAMP(a, layer, point + 2);
}
