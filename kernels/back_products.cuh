// The three kinds of products on the way back through a layer of the action expert, each with what follows it.
//
//   through_norm    q, k, v (K 2560) and gate and up (K 8192) back to the residual stream, and back through the norm that was in front
//   through_gate    down (K 1024), and back through GELU and the product with up
//   through_output  the output projection (K 1024)
//
// All multiply fragments of at most 64 rows (expert_common.cuh) by streamed weights (expert_stream.cuh), packed as [in, out] with K = out
// (engine/expert/back.py), and add up in fp32. Formats: back_arguments.cuh. Blocks exchange data as in expert_exchange.cuh.
#pragma once
#include "back_attention.cuh"

// What gradients are multiplied by where they enter e5m2, and its inverse.
struct BackScale {
  float up, down;
};

struct BackShared {
  Exchange exchange;                // of through_norm
  float4 narrow_exchange[2][2][128];  // of the others, so that two products in turn never use the same
  uint2 own_parts[128];             // what a block would send to itself
  float dots[4][16];                // of this block's rows, summed up by each warp of the second warpgroup
  StreamBarriers stream;
  AttentionShared attention;
  BackScale scale;
  uint32_t largest[THREADS / 32];
};

// Puts the largest of 16 columns of all rows of the gradient, spread over their width, between 16 and 32: e5m2 then has 11 octaves
// above and 18 below. Every block finds the same. Where the kernel does not begin with this gradient, the scale is 1.
__device__ __forceinline__ void find_scale(const BackArguments& a, BackShared& shared) {
  constexpr int BIAS = 127, WANTED = 4;
  const int row = threadIdx.x / 4;
  float largest = 0;
  if (a.phases & ACTIONS_IN && row < a.rows) {
    const float4 v = *reinterpret_cast<const float4*>(a.gradient + row * WIDTH + threadIdx.x % 4 * (WIDTH / 4) + row * 4 % (WIDTH / 4));
    largest = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
  }
  const uint32_t bits = __reduce_max_sync(0xffffffffu, __float_as_uint(largest));
  if (threadIdx.x % 32 == 0) shared.largest[threadIdx.x / 32] = bits;
  block_barrier();
  if (threadIdx.x == 0) {
    uint32_t top = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) top = max(top, shared.largest[i]);
    const int octave = top >> 23, wanted = octave == 0 || octave == 255 ? BIAS : min(2 * BIAS + WANTED - octave, 2 * BIAS - 1);
    shared.scale = {__uint_as_float(wanted << 23), __uint_as_float((2 * BIAS - wanted) << 23)};
  }
  block_barrier();
}

// A product with a norm in front, and what is given to the product in front of that.
struct ThroughNorm {
  const uint32_t* in;  // fragments
  uint4* parts;
  uint32_t *dots, *out;
  int norm, number;  // of the norm; of the exchange
  int out_number;
  bool first_of_all;  // norm: what arrives is written as it is
};

// A load that the compiler may not put off.
__device__ __forceinline__ float2 look2(const float* source) {
  float2 v;
  asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(source) : "memory");
  return v;
}

// The gradient times a gate as fragments in linear order, and the other half reset.
__device__ __forceinline__ void publish_gated(const Place& place, uint32_t* out, int number, float4 value) {
  if (!place.live) return;
  constexpr int HALF_WORDS = ROWS * WIDTH * Gradients::SIZE / 4;
  uint32_t *next = out + (number & 1) * HALF_WORDS, *last = out + (~number & 1) * HALF_WORDS;
  store_linear(Gradients(), place.row, place.column, value, [=](int i, uint32_t word) { put(next + i, word); });
  store_linear(Gradients(), place.row, place.column, value, [=](int i, uint32_t) { set_pending(last + i); });
}

// A warp has 16 rows of 32 columns: all for one block of the group. In 8 bits rows beyond the last stay here.
__device__ __forceinline__ void send_back_parts(const float (&sums)[16], uint4* parts, int number, uint2 (&own)[128], int rows) {
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
  if (NARROW && target % 4 * 16 + row >= rows) return;
  const uint32_t tag = tag_of(number);  // in both, as they are looked at apart
  uint4* to = parts + (((size_t)(number & 1) * BLOCKS + blockIdx.x / PARTS * PARTS + target) * PARTS + rank) * 64 + place;
#pragma unroll
  for (int p = 0; p < 2; p++)
    put_tagged(to + p * 32, make_uint4(v[2 * p].x, v[2 * p].y, (v[2 * p + 1].x & ~1u) | tag, v[2 * p + 1].y), tag);
}

// By the first warpgroup: the parts of others, four columns of a row a thread. place: of uint2 among the 128 of a part.
__device__ __forceinline__ float4 gather_back_parts(const uint4* parts, int number, int place, bool live) {
  const int rank = blockIdx.x % PARTS;
  const uint2* sent = reinterpret_cast<const uint2*>(parts + ((size_t)(number & 1) * BLOCKS + blockIdx.x) * PARTS * 64) + place;
  uint2 v[PARTS - 1];
  for (int patience = PATIENCE;; patience--) {
#pragma unroll
    for (int i = 0; i < PARTS - 1; i++) v[i] = look_whole(sent + (rank + 1 + i) % PARTS * 128);
    if (!__any_sync(0xffffffffu, (!NARROW || live) && wrong_tags(v, tag_of(number)))) break;
    if (patience == 0) __trap();
  }
  float4 sum = restored(v[0]);
#pragma unroll
  for (int i = 1; i < PARTS - 1; i++) sum = sum + restored(v[i]);
  return sum;
}

// Of this warp's 16 rows and of x, over 32 columns: of a lane's rows lane / 4 and + 8.
__device__ __forceinline__ void publish_dots(const ThroughNorm& n, const float (&dot)[2]) {
  const int lane = threadIdx.x % 32, tile = threadIdx.x % 128 / 32, writer = blockIdx.x * 2 + threadIdx.x / 128;
  if constexpr (NARROW) {
    const uint32_t word = pack_bf16(quad_sum(dot[0]), quad_sum(dot[1]));
    if (lane % 4 == 0) publish(n.dots, (size_t)DOTS * ROWS / 2, n.number, (tile * DOTS + writer) * 8 + lane / 4, word);
  } else {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t word = __float_as_uint(quad_sum(dot[half]));
      if (lane % 4 == 0) publish(n.dots, (size_t)DOTS * ROWS, n.number, writer * ROWS + tile * 16 + lane / 4 + half * 8, word);
    }
  }
}

__device__ __forceinline__ void reset_dots(const ThroughNorm& n) {
  const int lane = threadIdx.x % 32, tile = threadIdx.x % 128 / 32, writer = blockIdx.x * 2 + threadIdx.x / 128;
  if (lane % 4 != 0) return;
  if constexpr (NARROW) {
    set_pending(n.dots + (~n.number & 1) * (size_t)(DOTS * ROWS / 2) + (tile * DOTS + writer) * 8 + lane / 4);
  } else {
#pragma unroll
    for (int half = 0; half < 2; half++)
      set_pending(n.dots + (~n.number & 1) * (size_t)DOTS * ROWS + writer * ROWS + tile * 16 + lane / 4 + half * 8);
  }
}

// By the second warpgroup: products of this block's 16 rows and of x, over all columns.
__device__ __forceinline__ void gather_dots(Bf16, const uint32_t* dots, int number, float (&sums)[4][16]) {
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
__device__ __forceinline__ void gather_dots(E5m2, const uint32_t* dots, int number, float (&sums)[4][16]) {
  constexpr int EACH = DOTS * 2 / 128;
  const int thread = threadIdx.x % 128, lane = thread % 32;
  const uint4* source = reinterpret_cast<const uint4*>(dots + (size_t)(number & 1) * (DOTS * ROWS / 2)) +
                        blockIdx.x % GROUP * (DOTS * 2) + thread;
  uint4 v[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) v[i] = look(source + i * 128);
  await(v, source, 128);
  float s[8] = {};  // rows r, r + 8 of the lane's four words
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const float4 low = restored(make_uint2(v[i].x, v[i].y)), high = restored(make_uint2(v[i].z, v[i].w));
    s[0] += low.x, s[1] += low.y, s[2] += low.z, s[3] += low.w;
    s[4] += high.x, s[5] += high.y, s[6] += high.z, s[7] += high.w;
  }
#pragma unroll
  for (int step = 0; step < 3; step++) {  // each lane goes on with half of its values
    const int kept = 4 >> step, offset = 2 << step;
    const bool upper = lane & offset;
#pragma unroll
    for (int i = 0; i < kept; i++) {
      const float given = upper ? s[i] : s[i + kept], own = upper ? s[i + kept] : s[i];
      s[i] = own + __shfl_xor_sync(0xffffffffu, given, offset);
    }
  }
  s[0] += __shfl_xor_sync(0xffffffffu, s[0], 16);
  const int word = (lane >> 1 & 1) * 2 + (lane >> 2 & 1), half = lane >> 3 & 1;
  if (lane < 16) sums[thread / 32][lane % 2 * 4 + word + half * 8] = s[0];
}

// What a thread needs of the forward pass on the way through a norm: where it has products of the gradient and of x, and in its place.
// In 8 bits `load` asks for all of it before the product begins, for gate and up a phase before; in bf16 through_norm does, when its
// input is on its way, and has no `others`.
struct KeptNorm {
  float4 others[NORMED_COLUMNS / 16];  // [pair of tiles][row half]
  float2 their_scales[NORMED_COLUMNS / 16];
  float4 x, scale, gate, squares;  // x crossed (KeptTile)

  __device__ void clear() { x = scale = gate = squares = make_float4(0, 0, 0, 0); }
  static __device__ const float* kept_x(const BackArguments& a, const ThroughNorm& n) {
    return a.x + (size_t)n.norm * ROWS * WIDTH;
  }
  // Of this thread's accumulators: two columns of both tiles of a pair, of row r or r + 8.
  static __device__ float4 look_at_others(const BackArguments& a, const ThroughNorm& n, int pair, int half) {
    const int tile = (blockIdx.x / PARTS * 2 + threadIdx.x / 128) * ROW_TILES + threadIdx.x % 128 / 32;
    return look4(kept_x(a, n) + (tile * KeptTile::PIECE + (pair * 2 + half) * 32 + threadIdx.x % 32) * 4);
  }
  __device__ void load_own(const BackArguments& a, const ThroughNorm& n, const Place& place, int table) {
    if (!place.used) return;
    x = look4(kept_x(a, n) + KeptTile::own() * 4), scale = look4(a.scale + table + n.norm * WIDTH + place.column);
    gate = look4(a.gate + table + (n.norm - 1) * WIDTH + place.column);
    squares = look4(a.squares + (n.norm * ROWS + place.row) * STATISTICS + threadIdx.x % 8 * 4);
  }
  __device__ void load(const BackArguments& a, const ThroughNorm& n, const Place& place, int table) {
    const int column = blockIdx.x / PARTS * NORMED_COLUMNS + threadIdx.x / 128 * 32 + threadIdx.x % 4 * 2;
    const float* scales = a.scale + table + n.norm * WIDTH + column;
    clear();
    if (n.first_of_all) {
      if (place.used) scale = look4(a.scale + table + n.norm * WIDTH + place.column);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) their_scales[i] = look2(scales + i * 8), others[i] = look_at_others(a, n, i / 2, i % 2);
    load_own(a, n, place, table);
  }
};

// With g = (in W) * (1 + scale) and y = x / rms(x):  gradient += (g - y * mean(g * y)) / rms(x); what goes on is gradient * gate.
// The sum over a row of g * x is one of products that each part of in W has: they travel beside the parts, not behind them.
// table: the row of gate and scale. known: in 8 bits, what has been loaded. then: called when the input is being loaded.
template <int K, class Then>
__device__ __forceinline__ void through_norm(const BackArguments& a, const ThroughNorm& n, Stream& stream, BackShared& shared,
                                             const Place& place, int fragment, int table, float4& gradient, KeptNorm& known, int layer,
                                             int point, Then then) {
  using P = Gradients;
  constexpr int STEPS = K / P::STEP / PARTS, EACH = SLOT / (NORMED_COLUMNS * 32), SLOTS = (STEPS / 2 + EACH - 1) / EACH;
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128;
  const float* scales = a.scale + table + n.norm * WIDTH + blockIdx.x / PARTS * NORMED_COLUMNS + group * 32 + thread % 4 * 2;
  float accumulator[NORMED_COLUMNS / 2], weighted[NORMED_COLUMNS / 4] = {};
  KeptNorm own;
  KeptNorm& kept = NARROW ? known : own;
  const auto& others = kept.others;
  const auto& their_scales = kept.their_scales;
  const float4 &scale = kept.scale, &gate = kept.gate, &squares = kept.squares;
  if (!NARROW) kept.clear();
  const auto weigh = [&](int pair, int half, float4 v, float2 first, float2 second) {
    weighted[pair * 8 + half * 2] = v.x * first.x, weighted[pair * 8 + half * 2 + 1] = v.y * first.y;
    weighted[pair * 8 + 4 + half * 2] = v.z * second.x, weighted[pair * 8 + 4 + half * 2 + 1] = v.w * second.y;
  };
  const uint4* fragments = reinterpret_cast<const uint4*>(n.in) + blockIdx.x % PARTS * STEPS * STEP_FRAGMENTS + fragment;
  multiply<P, NORMED_COLUMNS, SLOTS, STEPS / 2 % EACH>(accumulator, fragments, stream, [&] {
    then();
    if (NARROW || n.first_of_all) return;
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
      const float2 first = look2(scales + pair * 16), second = look2(scales + pair * 16 + 8);
#pragma unroll
      for (int half = 0; half < 2; half++) weigh(pair, half, KeptNorm::look_at_others(a, n, pair, half), first, second);
    }
    kept.load_own(a, n, place, table);
  });
  STAMP(a, layer, point);
  float sums[NORMED_COLUMNS / 4];
  add_groups(sums, accumulator, shared.exchange);
  if (thread / 32 * 16 < a.rows) {
    send_back_parts(sums, n.parts, n.number, shared.own_parts, a.rows);
    if (!n.first_of_all) {
      float dot[2] = {};
      if constexpr (NARROW)
#pragma unroll
        for (int i = 0; i < 4; i++) weigh(i / 2, i % 2, others[i], their_scales[i / 2 * 2], their_scales[i / 2 * 2 + 1]);
#pragma unroll
      for (int i = 0; i < 16; i++) dot[i / 2 % 2] += sums[i] * weighted[i];
      publish_dots(n, dot);
    } else {
      reset_dots(n);
    }
  }
  STAMP(a, layer, point + 1);
  const float4 x = KeptTile::crossed(kept.x);
  const bool tile = blockIdx.x % GROUP * 16 < a.rows;  // whether this block's row tile is used
  const int part = (thread % 8 / 4 * 32 + thread / 8 * 2 + thread % 2) * 2 + thread % 4 / 2;
  float4 arrived = make_float4(0, 0, 0, 0);
  if (tile && group == 0) arrived = gather_back_parts(n.parts, n.number, part, place.live);
  if (tile && group == 1 && !n.first_of_all) gather_dots(Gradients(), n.dots, n.number, shared.dots);
  block_barrier();
  STAMP(a, layer, point + 2);
  if (!place.used) return;
  arrived = arrived + restored(shared.own_parts[part]);
  if (NARROW) arrived = arrived * shared.scale.down;
  if (n.first_of_all) {
    if (NARROW) arrived = arrived * scale;
    if (place.live)
      *reinterpret_cast<uint2*>(a.arriving + (place.row * WIDTH + place.column) / 2) =
          make_uint2(pack_bf16(arrived.x, arrived.y), pack_bf16(arrived.z, arrived.w));
    return;
  }
  float square = squares.x + squares.y + squares.z + squares.w;
#pragma unroll
  for (int offset = 1; offset < 8; offset *= 2) square += __shfl_xor_sync(0xffffffffu, square, offset);
  const float factor = rsqrtf(square * (1.0f / WIDTH) + EPSILON);
  float dot = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) dot += shared.dots[i][thread / 8];
  if (NARROW) dot *= shared.scale.down;
  const float along = -dot * (1.0f / WIDTH) * factor * factor * factor;
  gradient = gradient + arrived * scale * factor + x * along;
  float4 given = gradient * gate;
  if (NARROW) given = given * shared.scale.up;
  publish_gated(place, n.out, n.out_number, given);
  STAMP(a, layer, point + 3);
}

// Where a thread's gradients of gates and ups are: two fragments, in 8 bits one.
__device__ __forceinline__ uint4* hidden_place(const BackArguments& a, int number) {
  constexpr int FRAGMENTS = Gradients::SIZE;
  return reinterpret_cast<uint4*>(a.hidden) + (number & 1) * (ROWS * 2 * MLP * Gradients::SIZE / 16) +
         (blockIdx.x * 2 + threadIdx.x / 128) * FRAGMENTS * STEP_FRAGMENTS + threadIdx.x % 128;
}

// Whether a thread has any of them: of used row tiles, in 8 bits of rows that are.
__device__ __forceinline__ bool has_hidden(const BackArguments& a) {
  return threadIdx.x % 128 / 32 * 16 + (NARROW ? threadIdx.x % 32 / 4 : 0) < a.rows;
}

__device__ __forceinline__ void reset_hidden_gradient(const BackArguments& a, int number) {
  if (!has_hidden(a)) return;
  uint4* last = hidden_place(a, number + 1);
  set_pending(last);
  if (!NARROW) set_pending(last + STEP_FRAGMENTS);
}

// From fragments of the gradient of down's result to those of gate and up, 64 columns a block: with h = in W,
//   gate: h * up * gelu'(gate),   up: h * gelu(gate)
__device__ __forceinline__ void through_gate(const BackArguments& a, int layer, const uint32_t* in, int number, Stream& stream,
                                             BackShared& shared, int fragment) {
  constexpr int SLOTS = WIDTH / Gradients::STEP * DOWN_COLUMNS * 32 / SLOT / 2;
  const int column = blockIdx.x * DOWN_COLUMNS + threadIdx.x / 128 * 16 + threadIdx.x % 4 * 2;
  const uint4* kept = a.gate_up + (layer * BLOCKS + blockIdx.x) * 2 * THREADS + threadIdx.x;
  const uint4 gates = kept[0], ups = kept[THREADS];  // [tile][half]
  float2 scales[2];
  if (NARROW)
#pragma unroll
    for (int t = 0; t < 2; t++) scales[t] = *reinterpret_cast<const float2*>(a.down_scale + layer * MLP + column + t * 8);
  float accumulator[DOWN_COLUMNS / 2], slopes[8], values[8];
  multiply<Gradients, DOWN_COLUMNS, SLOTS>(accumulator, reinterpret_cast<const uint4*>(in) + fragment, stream, [&] {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const float2 gate = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(&gates)[i / 2]);
      const float2 up = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(&ups)[i / 2]);
      const float2 first = gelu_with_slope(gate.x), second = gelu_with_slope(gate.y);
      slopes[i] = up.x * first.y, slopes[i + 1] = up.y * second.y;
      values[i] = first.x, values[i + 1] = second.x;
      if (NARROW) {
        const float2 scale = scales[i / 4];
        slopes[i] *= scale.x, slopes[i + 1] *= scale.y, values[i] *= scale.x, values[i + 1] *= scale.y;
      }
    }
  });
  float sums[DOWN_COLUMNS / 4];
  STAMP(a, layer, 1);
  add_groups(sums, accumulator, shared.narrow_exchange);
  if (!has_hidden(a)) return;
  uint4* out = hidden_place(a, number);
  if constexpr (NARROW) {
    const auto four = [&](const float(&by)[8], int half) {
      const int i = half * 2;
      return pack_four(E5m2(), make_float4(sums[i] * by[i], sums[i + 1] * by[i + 1], sums[i + 4] * by[i + 4], sums[i + 5] * by[i + 5]));
    };
    put(out, make_uint4(four(slopes, 0), four(slopes, 1), four(values, 0), four(values, 1)));
  } else {
    const auto fragment_of = [&](const float(&by)[8]) {
      return make_uint4(pack_bf16(sums[0] * by[0], sums[1] * by[1]), pack_bf16(sums[2] * by[2], sums[3] * by[3]),
                        pack_bf16(sums[4] * by[4], sums[5] * by[5]), pack_bf16(sums[6] * by[6], sums[7] * by[7]));
    };
    put(out, fragment_of(slopes)), put(out + STEP_FRAGMENTS, fragment_of(values));
  }
  STAMP(a, layer, 2);
}

// From fragments of the gradient of the output projection's result to 16 columns of attention's, as fragments of flat rows.
__device__ __forceinline__ void through_output(const BackArguments& a, int layer, int number, Stream& stream, BackShared& shared,
                                               int fragment) {
  const uint32_t* in = a.gated_output + (number & 1) * (ROWS * WIDTH * Gradients::SIZE / 4);
  constexpr int SLOTS = WIDTH / Gradients::STEP * OUTPUT_COLUMNS * 32 / SLOT / 2, HALF_WORDS = ROWS * ATTENDED / 2;
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128, lane = threadIdx.x % 32, row = thread / 32 * 16 + lane / 4;
  float accumulator[OUTPUT_COLUMNS / 2], sums[OUTPUT_COLUMNS / 4];
  float2 scale;
  if (NARROW)
    scale = *reinterpret_cast<const float2*>(a.output_scale + layer * ATTENDED + blockIdx.x * OUTPUT_COLUMNS + group * 8 + lane % 4 * 2);
  multiply<Gradients, OUTPUT_COLUMNS, SLOTS>(accumulator, reinterpret_cast<const uint4*>(in) + fragment, stream, [] {});
  STAMP(a, layer, 7);
  add_groups(sums, accumulator, shared.narrow_exchange);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (row + half * 8 >= a.rows) continue;
    const int flat = blockIdx.x / (DIM / OUTPUT_COLUMNS) * a.rows + row + half * 8, step = blockIdx.x % (DIM / OUTPUT_COLUMNS);
    const int place = ((flat / 16 * (DIM / 16) + step) * 32 + flat % 8 * 4 + lane % 4) * 4 + group * 2 + flat % 16 / 8;
    if (NARROW) sums[half * 2] *= scale.x, sums[half * 2 + 1] *= scale.y;
    publish(a.upstream, (size_t)HALF_WORDS, number, place, pack_bf16(sums[half * 2], sums[half * 2 + 1]));
  }
  STAMP(a, layer, 8);
}
