// Products of a normed input: what q, k, v and gate, up have in common.
#pragma once
#include "expert_arguments.cuh"

using Exchange = float4[2][4][128];  // between the two warpgroups: [from][accumulator quad][thread]
using Squares = float[THREADS];
constexpr int SQUARES = STATISTICS / (THREADS / ROWS);  // partial sums of squares that a thread adds up

// accumulator = this warpgroup's half of fragments * weights; squares: sums over a quarter of a row's partial sums, for all rows.
template <class P, int COLUMNS>
__device__ __forceinline__ void multiply_normed(float (&accumulator)[COLUMNS / 2], const Normed& in, int place, int number,
                                                Stream& stream, Squares& squares) {
  constexpr int SLOTS = WIDTH / P::STEP * COLUMNS * 32 / SLOT / 2;
  const uint32_t* statistics =
      in.statistics + (number & 1) * STATISTICS * ROWS + threadIdx.x / ROWS * SQUARES * ROWS + threadIdx.x % ROWS;
  uint32_t parts[SQUARES];
  const uint4* fragments = reinterpret_cast<const uint4*>(in.fragments) + (number & 1) * (ROWS * WIDTH * P::SIZE / 16) + place;
  multiply<P, COLUMNS, SLOTS>(accumulator, fragments, stream, [&] {
#pragma unroll
    for (int i = 0; i < SQUARES; i++) parts[i] = look(statistics + i * ROWS);
  });
  await(parts, statistics, ROWS);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < SQUARES; i++) sum += __uint_as_float(parts[i]);
  squares[threadIdx.x] = sum;
}

// After a block barrier: 1 / rms of a row.
__device__ __forceinline__ float inverse_rms(const Squares& squares, int row) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < THREADS; i += ROWS) sum += squares[i + row];
  return rsqrtf(sum * (1.0f / WIDTH) + EPSILON);
}

// The two warps of a block that have sums of the same rows. By both, from where each has read what the other gave to where either
// may give again: between two products no other wait is sure to hold a warp back, as what the next one waits for need not come of
// its partner.
__device__ __forceinline__ void partners_meet() {
  constexpr int FIRST_BARRIER = 8;
  asm volatile("bar.sync %0, 64;" ::"r"(FIRST_BARRIER + threadIdx.x % 128 / 32) : "memory");
}

// The two warpgroups have multiplied different K. Each gets the sums of half of the accumulators: the first warpgroup the lower
// half. Contains a block barrier, and ends with one of partners.
template <int N, int QUADS>
__device__ __forceinline__ void add_groups(float (&sum)[N / 2], const float (&accumulator)[N],
                                           float4 (&exchange)[2][QUADS][128]) {
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128;
#pragma unroll
  for (int i = 0; i < N / 8; i++) {
    float given[4];
#pragma unroll
    for (int j = 0; j < 4; j++) given[j] = group ? accumulator[i * 4 + j] : accumulator[N / 2 + i * 4 + j];
    exchange[group][i][thread] = make_float4(given[0], given[1], given[2], given[3]);
  }
  block_barrier();
#pragma unroll
  for (int i = 0; i < N / 8; i++) {
    float4 other = exchange[1 - group][i][thread];
    const float rest[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
    for (int j = 0; j < 4; j++) sum[i * 4 + j] = (group ? accumulator[N / 2 + i * 4 + j] : accumulator[i * 4 + j]) + rest[j];
  }
  partners_meet();
}
