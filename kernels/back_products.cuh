// The three kinds of products on the way back through a layer of the action expert, each with what follows it.
//
//   through_norm    q, k, v (K 2560) and gate and up (K 8192) back to the residual stream, and back through the norm that was in front
//   through_gate    down (K 1024), and back through GELU and the product with up
//   through_output  the output projection (K 1024)
//
// All multiply bf16 fragments of at most 64 rows (expert_common.cuh) by streamed bf16 weights (expert_stream.cuh), packed as [in, out]
// with K = out (engine/expert/back.py), and add up in fp32. Blocks exchange data as in expert_exchange.cuh.
#pragma once
#include "back_attention.cuh"

struct BackShared {
  Exchange exchange;                // of through_norm
  float4 narrow_exchange[2][2][128];  // of the others, so that two products in turn never use the same
  uint2 own_parts[128];             // what a block would send to itself
  float dots[4][16];                // of this block's rows, summed up by each warp of the second warpgroup
  StreamBarriers stream;
  AttentionShared attention;
};

// A product with a norm in front, and what is given to the product in front of that.
struct ThroughNorm {
  const uint32_t* in;  // fragments
  uint4* parts;
  uint32_t *dots, *out;
  int norm, number;  // of the norm; of the exchange
  int out_number;
  bool first_of_all;  // norm: what arrives is written as it is
};

// Loads that the compiler may not put off.
__device__ __forceinline__ float4 look4(const float* source) { return restored(look(reinterpret_cast<const uint4*>(source))); }
__device__ __forceinline__ float2 look2(const float* source) {
  float2 v;
  asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(source) : "memory");
  return v;
}

// The gradient times a gate as fragments in linear order, and the other half reset.
__device__ __forceinline__ void publish_gated(const Place& place, uint32_t* out, int number, float4 value) {
  if (!place.live) return;
  constexpr int HALF_WORDS = ROWS * WIDTH / 2;
  uint32_t *next = out + (number & 1) * HALF_WORDS, *last = out + (~number & 1) * HALF_WORDS;
  store_linear(Bf16(), place.row, place.column, value, [=](int i, uint32_t word) { put(next + i, word); });
  store_linear(Bf16(), place.row, place.column, value, [=](int i, uint32_t) { set_pending(last + i); });
}

// A warp has 16 rows of 32 columns: all for one block of the group.
__device__ __forceinline__ void send_back_parts(const float (&sums)[16], uint4* parts, int number, uint2 (&own)[128]) {
  const int lane = threadIdx.x % 32, odd = lane % 2, row = lane / 4 + odd * 8, rank = blockIdx.x % PARTS;
  const int target = threadIdx.x / 32;  // its rank: row tile, and 4 for the higher columns
  uint2 v[4];
#pragma unroll
  for (int t = 0; t < 4; t++) v[t] = row_of_four(uint2(), sums + t * 4, odd);
  const int place = row * 2 + lane % 4 / 2;  // [pair of tiles][row][half of a tile]
  if (target == rank) {
#pragma unroll
    for (int t = 0; t < 4; t++) own[(t / 2 * 32 + place) * 2 + t % 2] = v[t];
    return;
  }
  const uint32_t tag = tag_of(number);  // in both, as they are looked at apart
  uint4* to = parts + (((size_t)(number & 1) * BLOCKS + blockIdx.x / PARTS * PARTS + target) * PARTS + rank) * 64 + place;
#pragma unroll
  for (int p = 0; p < 2; p++)
    put_tagged(to + p * 32, make_uint4(v[2 * p].x, v[2 * p].y, (v[2 * p + 1].x & ~1u) | tag, v[2 * p + 1].y), tag);
}

// By the first warpgroup: the parts of others, four columns of a row a thread. place: of uint2 among the 128 of a part.
__device__ __forceinline__ float4 gather_back_parts(const uint4* parts, int number, int place) {
  const int rank = blockIdx.x % PARTS;
  const uint2* sent = reinterpret_cast<const uint2*>(parts + ((size_t)(number & 1) * BLOCKS + blockIdx.x) * PARTS * 64) + place;
  uint2 v[PARTS - 1];
  for (int patience = PATIENCE;; patience--) {
#pragma unroll
    for (int i = 0; i < PARTS - 1; i++) v[i] = look_whole(sent + (rank + 1 + i) % PARTS * 128);
    if (!__any_sync(0xffffffffu, wrong_tags(v, tag_of(number)))) break;
    if (patience == 0) __trap();
  }
  float4 sum = restored(v[0]);
#pragma unroll
  for (int i = 1; i < PARTS - 1; i++) sum = sum + restored(v[i]);
  return sum;
}

// By the second warpgroup: products of this block's 16 rows and of x, over all columns.
__device__ __forceinline__ void gather_dots(const uint32_t* dots, int number, float (&sums)[4][16]) {
  constexpr int EACH = DOTS / 32;
  const int thread = threadIdx.x % 128;
  const uint4* source = reinterpret_cast<const uint4*>(dots + (size_t)(number & 1) * DOTS * ROWS) + thread / 4 * (ROWS / 4) +
                        blockIdx.x % GROUP * 4 + thread % 4;
  uint4 v[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) v[i] = look(source + i * 32 * (ROWS / 4));
  await(v, source, 32 * (ROWS / 4));
  float4 sum = restored(v[0]);
#pragma unroll
  for (int i = 1; i < EACH; i++) sum = sum + restored(v[i]);
  float s[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) s[i] += __shfl_xor_sync(0xffffffffu, s[i], offset);
  if (thread % 32 < 4)
#pragma unroll
    for (int i = 0; i < 4; i++) sums[thread / 32][thread % 4 * 4 + i] = s[i];
}

// With g = (in W) * (1 + scale) and y = x / rms(x):  gradient += (g - y * mean(g * y)) / rms(x); what goes on is gradient * gate.
// The sum over a row of g * x is one of products that each part of in W has: they travel beside the parts, not behind them.
// table: the row of gate and scale.
template <int K, class Then>
__device__ __forceinline__ void through_norm(const BackArguments& a, const ThroughNorm& n, Stream& stream, BackShared& shared,
                                             const Place& place, int fragment, int table, float4& gradient, int layer, int point, Then then) {
  constexpr int STEPS = K / Bf16::STEP / PARTS, SLOTS = STEPS * NORMED_COLUMNS * 32 / SLOT / 2;
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128, lane = threadIdx.x % 32, row = thread / 32 * 16 + lane / 4;
  const int column = blockIdx.x / PARTS * NORMED_COLUMNS + group * 32 + lane % 4 * 2;
  const float *scales = a.scale + table + n.norm * WIDTH, *x_rows = a.x + (size_t)n.norm * ROWS * WIDTH;
  float accumulator[NORMED_COLUMNS / 2], weighted[NORMED_COLUMNS / 4] = {};
  float4 x = make_float4(0, 0, 0, 0), scale = x, gate = x;
  uint32_t squares[4] = {};
  const uint4* fragments = reinterpret_cast<const uint4*>(n.in) + blockIdx.x % PARTS * STEPS * STEP_FRAGMENTS + fragment;
  multiply<Bf16, NORMED_COLUMNS, SLOTS>(accumulator, fragments, stream, [&] {
    then();
    if (n.first_of_all) return;
#pragma unroll
    for (int t = 0; t < 4; t++) {
      const float2 s = look2(scales + column + t * 8);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float2 v = look2(x_rows + (row + half * 8) * WIDTH + column + t * 8);
        weighted[t * 4 + half * 2] = v.x * s.x, weighted[t * 4 + half * 2 + 1] = v.y * s.y;
      }
    }
    if (!place.used) return;
    x = look4(x_rows + place.row * WIDTH + place.column), scale = look4(scales + place.column);
    gate = look4(a.gate + table + (n.norm - 1) * WIDTH + place.column);
#pragma unroll
    for (int i = 0; i < 4; i++)
      squares[i] = look(reinterpret_cast<const uint32_t*>(a.squares) + (n.norm * STATISTICS + thread % 8 * 4 + i) * ROWS + place.row);
  });
  STAMP(a, layer, point);
  float sums[NORMED_COLUMNS / 4];
  add_groups(sums, accumulator, shared.exchange);
  if (thread / 32 * 16 < a.rows) {
    send_back_parts(sums, n.parts, n.number, shared.own_parts);
    if (!n.first_of_all) {
      float dot[2] = {};
#pragma unroll
      for (int i = 0; i < 16; i++) dot[i / 2 % 2] += sums[i] * weighted[i];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint32_t word = __float_as_uint(quad_sum(dot[half]));
        if (lane % 4 == 0) publish(n.dots, (size_t)DOTS * ROWS, n.number, (blockIdx.x * 2 + group) * ROWS + row + half * 8, word);
      }
    } else if (lane % 4 == 0) {
#pragma unroll
      for (int half = 0; half < 2; half++)
        set_pending(n.dots + (~n.number & 1) * (size_t)DOTS * ROWS + (blockIdx.x * 2 + group) * ROWS + row + half * 8);
    }
  }
  STAMP(a, layer, point + 1);
  const bool tile = blockIdx.x % GROUP * 16 < a.rows;  // whether this block's row tile is used
  const int own = (thread % 8 / 4 * 32 + thread / 8 * 2 + thread % 2) * 2 + thread % 4 / 2;
  float4 arrived = make_float4(0, 0, 0, 0);
  if (tile && group == 0) arrived = gather_back_parts(n.parts, n.number, own);
  if (tile && group == 1 && !n.first_of_all) gather_dots(n.dots, n.number, shared.dots);
  block_barrier();
  STAMP(a, layer, point + 2);
  if (!place.used) return;
  arrived = arrived + restored(shared.own_parts[own]);
  if (n.first_of_all) {
    if (place.live)
      *reinterpret_cast<uint2*>(a.arriving + (place.row * WIDTH + place.column) / 2) =
          make_uint2(pack_bf16(arrived.x, arrived.y), pack_bf16(arrived.z, arrived.w));
    return;
  }
  float square = __uint_as_float(squares[0]) + __uint_as_float(squares[1]) + __uint_as_float(squares[2]) + __uint_as_float(squares[3]);
#pragma unroll
  for (int offset = 1; offset < 8; offset *= 2) square += __shfl_xor_sync(0xffffffffu, square, offset);
  const float factor = rsqrtf(square * (1.0f / WIDTH) + EPSILON);
  float dot = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) dot += shared.dots[i][thread / 8];
  const float along = -dot * (1.0f / WIDTH) * factor * factor * factor;
  gradient = gradient + arrived * scale * factor + x * along;
  publish_gated(place, n.out, n.out_number, gradient * gate);
  STAMP(a, layer, point + 3);
}

// Of this thread's two fragments, gates and ups.
__device__ __forceinline__ uint4* hidden_place(const BackArguments& a, int number) {
  return reinterpret_cast<uint4*>(a.hidden) + (number & 1) * (ROWS * 2 * MLP / 8) +
         (blockIdx.x * 2 + threadIdx.x / 128) * 2 * STEP_FRAGMENTS + threadIdx.x % 128;
}

__device__ __forceinline__ void reset_hidden_gradient(const BackArguments& a, int number) {
  if (threadIdx.x % 128 / 32 * 16 >= a.rows) return;
  uint4* last = hidden_place(a, number + 1);
  set_pending(last), set_pending(last + STEP_FRAGMENTS);
}

// From fragments of the gradient of down's result to those of gate and up, 64 columns a block: with h = in W,
//   gate: h * up * gelu'(gate),   up: h * gelu(gate)
__device__ __forceinline__ void through_gate(const BackArguments& a, int layer, const uint32_t* in, int number, Stream& stream,
                                             BackShared& shared, int fragment) {
  constexpr int SLOTS = WIDTH / Bf16::STEP * DOWN_COLUMNS * 32 / SLOT / 2;
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128, lane = threadIdx.x % 32, row = thread / 32 * 16 + lane / 4;
  const uint32_t* kept = a.gate_up + ((size_t)(layer * ROWS + row) * 2 * MLP + blockIdx.x * DOWN_COLUMNS + group * 16 + lane % 4 * 2) / 2;
  uint32_t gates[2][2], ups[2][2];  // [tile][half]
#pragma unroll
  for (int t = 0; t < 2; t++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      gates[t][half] = kept[half * 8 * MLP + t * 4], ups[t][half] = kept[half * 8 * MLP + MLP / 2 + t * 4];
  float accumulator[DOWN_COLUMNS / 2], slopes[8], values[8];
  multiply<Bf16, DOWN_COLUMNS, SLOTS>(accumulator, reinterpret_cast<const uint4*>(in) + fragment, stream, [&] {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const float2 gate = __bfloat1622float2(reinterpret_cast<__nv_bfloat162&>(gates[i / 4][i / 2 % 2]));
      const float2 up = __bfloat1622float2(reinterpret_cast<__nv_bfloat162&>(ups[i / 4][i / 2 % 2]));
      const float2 first = gelu_with_slope(gate.x), second = gelu_with_slope(gate.y);
      slopes[i] = up.x * first.y, slopes[i + 1] = up.y * second.y;
      values[i] = first.x, values[i + 1] = second.x;
    }
  });
  float sums[DOWN_COLUMNS / 4];
  STAMP(a, layer, 1);
  add_groups(sums, accumulator, shared.narrow_exchange);
  if (thread / 32 * 16 >= a.rows) return;
  const auto fragment_of = [&](const float(&by)[8]) {
    return make_uint4(pack_bf16(sums[0] * by[0], sums[1] * by[1]), pack_bf16(sums[2] * by[2], sums[3] * by[3]),
                      pack_bf16(sums[4] * by[4], sums[5] * by[5]), pack_bf16(sums[6] * by[6], sums[7] * by[7]));
  };
  uint4* out = hidden_place(a, number);
  put(out, fragment_of(slopes)), put(out + STEP_FRAGMENTS, fragment_of(values));
  STAMP(a, layer, 2);
}

// From fragments of the gradient of the output projection's result to 16 columns of attention's, as fragments of flat rows.
__device__ __forceinline__ void through_output(const BackArguments& a, int layer, int number, Stream& stream, BackShared& shared,
                                               int fragment) {
  const uint32_t* in = a.gated_output + (number & 1) * (ROWS * WIDTH / 2);
  constexpr int SLOTS = WIDTH / Bf16::STEP * OUTPUT_COLUMNS * 32 / SLOT / 2, HALF_WORDS = ROWS * ATTENDED / 2;
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128, lane = threadIdx.x % 32, row = thread / 32 * 16 + lane / 4;
  float accumulator[OUTPUT_COLUMNS / 2], sums[OUTPUT_COLUMNS / 4];
  multiply<Bf16, OUTPUT_COLUMNS, SLOTS>(accumulator, reinterpret_cast<const uint4*>(in) + fragment, stream, [] {});
  STAMP(a, layer, 7);
  add_groups(sums, accumulator, shared.narrow_exchange);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (row + half * 8 >= a.rows) continue;
    const int flat = blockIdx.x / (DIM / OUTPUT_COLUMNS) * a.rows + row + half * 8, step = blockIdx.x % (DIM / OUTPUT_COLUMNS);
    const int place = ((flat / 16 * (DIM / 16) + step) * 32 + flat % 8 * 4 + lane % 4) * 4 + group * 2 + flat % 16 / 8;
    publish(a.upstream, (size_t)HALF_WORDS, number, place, pack_bf16(sums[half * 2], sums[half * 2 + 1]));
  }
  STAMP(a, layer, 8);
}
