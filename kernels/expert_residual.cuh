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
// of partial sums to the block that finishes them: 4 partial sums a value, in bf16 if the
// product is of 8 bits.
#pragma once
#include <type_traits>

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

// How x is kept between the first norm and the last (Kept), as accumulators of wgmma are: [32 groups of 32 columns][row tile]
// [pair of tiles of 8 columns][rows r, r + 8][lane 32], of a lane the columns c, c + 1 of both tiles.
struct KeptTile {
  static constexpr int PIECE = 4 * 32;  // lanes of a row tile of 32 columns
  // Of four columns of a row that a thread has at a Place, crossed: its own piece among the others.
  static __device__ int own() {
    const int thread = threadIdx.x, row = thread / 8 % 8, quad = thread % 8;
    return blockIdx.x * PIECE + (quad / 4 * 2 + thread / 64) * 32 + row * 4 + quad % 2 * 2 + quad / 2 % 2;
  }
  // Four columns of a row become two columns of two tiles, and the other way round, with the thread of the other tile.
  static __device__ float4 crossed(float4 v) {
    const bool second = threadIdx.x & 2;
    const float x = __shfl_xor_sync(0xffffffffu, second ? v.x : v.z, 2), y = __shfl_xor_sync(0xffffffffu, second ? v.y : v.w, 2);
    return second ? make_float4(x, y, v.z, v.w) : make_float4(v.x, v.y, x, y);
  }
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

// Partial sums of products of 8 bits are sent in bf16, others in fp32.
template <class In>
using Part = std::conditional_t<In::SIZE == 1, uint2, uint4>;

__device__ __forceinline__ float4 restored(uint4 v) {
  return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}
__device__ __forceinline__ float4 restored(uint2 v) {
  const float2 low = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&v.x));
  const float2 high = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&v.y));
  return make_float4(low.x, low.y, high.x, high.y);
}

// Two neighbouring lanes have two columns of two rows each; the even one gets four of the upper row, the odd one of the lower.
__device__ __forceinline__ uint4 row_of_four(uint4, const float* sums, int odd) {
  const float k0 = odd ? sums[2] : sums[0], k1 = odd ? sums[3] : sums[1];
  const float g0 = odd ? sums[0] : sums[2], g1 = odd ? sums[1] : sums[3];
  const float r0 = __shfl_xor_sync(0xffffffffu, g0, 1), r1 = __shfl_xor_sync(0xffffffffu, g1, 1);
  return odd ? make_uint4(__float_as_uint(r0), __float_as_uint(r1), __float_as_uint(k0), __float_as_uint(k1))
             : make_uint4(__float_as_uint(k0), __float_as_uint(k1), __float_as_uint(r0), __float_as_uint(r1));
}
__device__ __forceinline__ uint2 row_of_four(uint2, const float* sums, int odd) {
  const uint32_t upper = pack_bf16(sums[0], sums[1]), lower = pack_bf16(sums[2], sums[3]);
  const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? upper : lower, 1);
  return odd ? make_uint2(got, lower) : make_uint2(upper, got);
}

// Send this warp's 16 rows of two tiles of partial sums, four neighbouring columns a lane.
// own: where those for this block itself stay.
template <class T>
__device__ __forceinline__ void send_parts(const float (&sums)[RESIDUAL_COLUMNS / 4], T* parts, int number, Squares& own) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, odd = lane % 2, row = lane / 4 + odd * 8;
  T* target = parts + (((size_t)(number & 1) * BLOCKS + blockIdx.x / GROUP * GROUP + warp) * GROUP + blockIdx.x % GROUP) * 128 +
              row * 8 + threadIdx.x / 128 * (TILES / 2) * 2;
  T v[TILES / 2];
#pragma unroll
  for (int i = 0; i < TILES / 2; i++) v[i] = row_of_four(T(), sums + i * 4, odd);
  const uint32_t tag = tag_of(number);
  if constexpr (sizeof(T) == 8) {
    if (warp == blockIdx.x % GROUP) {
#pragma unroll
      for (int i = 0; i < TILES / 2; i++)
        reinterpret_cast<T*>(own)[row * 8 + threadIdx.x / 128 * (TILES / 2) * 2 + 2 * i + lane % 4 / 2] = v[i];
      if (threadIdx.x >= 128) asm volatile("bar.arrive 6, 160;" ::: "memory");
      return;
    }
  }
  if constexpr (sizeof(T) == 8) {  // the tag in both, as they are looked at apart
    put_tagged(reinterpret_cast<uint4*>(target) + lane % 4 / 2, make_uint4(v[0].x, v[0].y, (v[1].x & ~1u) | tag, v[1].y), tag);
  } else {
#pragma unroll
    for (int i = 0; i < TILES / 2; i++) put_tagged(target + 2 * i + lane % 4 / 2, v[i], tag);
  }
}

template <class T>
__device__ __forceinline__ float4 gather_parts(const T* parts, int number, const Squares& own) {
  int place = threadIdx.x;
  if (sizeof(T) == 8) place = place & ~3 | (place & 1) << 1 | place >> 1 & 1;
  if constexpr (sizeof(T) == 8) {
    const T* sent = parts + ((size_t)(number & 1) * BLOCKS + blockIdx.x) * GROUP * 128 + place;
    const T* source[GROUP - 1];
    T v[GROUP - 1];
#pragma unroll
    for (int i = 0; i < GROUP - 1; i++) source[i] = sent + (blockIdx.x + 1 + i) % GROUP * 128;
    for (int patience = PATIENCE;; patience--) {
#pragma unroll
      for (int i = 0; i < GROUP - 1; i++) v[i] = look_whole(source[i]);
      if (!__any_sync(0xffffffffu, wrong_tags(v, tag_of(number)))) break;
      if (patience == 0) __trap();
    }
    asm volatile("bar.sync 6, 160;" ::: "memory");
    return restored(reinterpret_cast<const T*>(own)[threadIdx.x]) + restored(v[0]) + restored(v[1]) + restored(v[2]);
  }
  T v[GROUP];
  await_tagged(v, parts + ((size_t)(number & 1) * BLOCKS + blockIdx.x) * GROUP * 128 + place, 128, tag_of(number));
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int i = 0; i < GROUP; i++) sum = sum + restored(v[i]);
  return sum;
}

// x: this thread's part of the residual stream. then: called when the product's input is being loaded.
template <class In, class Out, int K, class Then>
__device__ __forceinline__ void project_back(const Arguments& a, const Residual& r, Stream& stream,
                                             Exchange& exchange, Squares& squares, const Place& place, int fragment,
                                             float4& x, int layer, int point, Then then) {
  constexpr int STEPS = K / In::STEP / GROUP, SLOTS = STEPS * RESIDUAL_COLUMNS * 32 / SLOT / 2;
  // In 8 bits multiplied only behind the product, so that nothing waits for them before.
  constexpr bool LATE = true;
  float4 column_scale = make_float4(0, 0, 0, 0), next_factor = column_scale, gate = make_float4(1, 1, 1, 1);
  if (place.used) {
    column_scale = *reinterpret_cast<const float4*>(r.column_scale + place.column);
    if (r.gate) gate = *reinterpret_cast<const float4*>(r.gate + place.column);
    next_factor = *reinterpret_cast<const float4*>(r.next_scale + place.column);
  }
  if (!LATE) column_scale = column_scale * r.activation_scale * gate, next_factor = next_factor * r.next_inverse;
  float accumulator[RESIDUAL_COLUMNS / 2];
  const uint4* fragments = reinterpret_cast<const uint4*>(r.in) + blockIdx.x % GROUP * STEPS * STEP_FRAGMENTS + fragment;
  multiply<In, RESIDUAL_COLUMNS, SLOTS>(accumulator, fragments, stream, then);
  STAMP(a, layer, point);
  float sums[RESIDUAL_COLUMNS / 4];
  add_groups(sums, accumulator, exchange);
  Part<In>* parts = reinterpret_cast<Part<In>*>(r.parts);
  if (threadIdx.x % 128 / 32 * 16 < a.rows) send_parts(sums, parts, r.parts_number, squares);
  if (!place.used) return;

  if (LATE) column_scale = column_scale * r.activation_scale * gate, next_factor = next_factor * r.next_inverse;
  x = x + gather_parts(parts, r.parts_number, squares) * column_scale;
  STAMP(a, layer, point + 1);
  float square = x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) square += __shfl_xor_sync(0xffffffffu, square, offset);
#ifdef KEEPS
  const float4 crossed = KeptTile::crossed(x);
#endif
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
  const bool plain = r.norm == 0 || r.norm == 2 * a.layers;
  const int within = plain ? (place.row * WIDTH + place.column) / 4 : KeptTile::own();
  reinterpret_cast<float4*>(a.kept.x)[r.norm * (ROWS * WIDTH / 4) + within] = plain ? x : crossed;
  if (threadIdx.x % 8 == 0) a.kept.squares[(r.norm * ROWS + place.row) * STATISTICS + blockIdx.x / GROUP] = square;
#endif
  STAMP(a, layer, point + 2);
}
