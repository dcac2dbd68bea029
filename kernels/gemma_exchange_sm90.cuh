// How the blocks of gemma_attention_sm90.cu divide queries and keys, and put together what each found.
//
// The blocks of a cluster see different keys of the same 128 queries. Each finishes whole groups of 16 rows, those of one
// warp in all blocks: the warps of the others send it their normalised rows in fp16, with largest logit and sum, by stores
// that complete on its barriers. A row travels in three parts, as soon as each is computed.
#pragma once
#include "attention_sm90.cuh"
#include <cuda_fp16.h>

constexpr int DIM = 256, QUERIES = 128, WARPS = 8, MOST_BLOCKS = 8;
constexpr int PARTS = 3;                               // of the columns: a half and two quarters
constexpr int PARTIAL_BYTES = 16 * DIM * sizeof(half);  // 16 rows from one block
constexpr int RECEIVED_BYTES = 2 * 7 * PARTIAL_BYTES;   // the most: two groups of rows from seven blocks
constexpr int SOFTMAX_BYTES = WARPS * MOST_BLOCKS * 16 * sizeof(float2);  // [group][source][row]: largest logit, sum

// Which part of the work is this block's.
struct Place {
  int rank, split;         // along the keys
  int total, begin, end;   // keys: all, and this block's

  __device__ Place(int total) : rank(blockIdx.y), split(gridDim.y), total(total) {
    int each = min((total + split - 1) / split + 15 & ~15, total);
    begin = min(rank * each, total), end = min(begin + each, total);
  }
  // Rows 16 * group .. of the block's queries are finished by this one of the blocks along the keys.
  __device__ int owner(int group) const { return group * split / WARPS; }
  __device__ int first_group(int rank) const { return (rank * WARPS + split - 1) / split; }
  __device__ int groups() const { return first_group(rank + 1) - first_group(rank); }
};

template <int TILES>
__device__ __forceinline__ void multiply_rows(float (&tiles)[TILES][4], const float (&factor)[2]) {
#pragma unroll
  for (int t = 0; t < TILES; t++) {
#pragma unroll
    for (int j = 0; j < 4; j++) tiles[t][j] *= factor[j / 2];
  }
}

__device__ __forceinline__ uint32_t pack_half(float low, float high) {
  __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<uint32_t*>(&pair);
}

// This warp's rows on their way to the block that finishes them, as [pair of tiles][lane] of 16 bytes in `slot`.
struct Delivery {
  uint8_t* slot;
  uint64_t* barriers;
  int owner, group, source, lane;  // group: among those that the owner finishes
  bool own;

  __device__ Delivery(uint8_t* memory, uint64_t* barriers, const Place& place, int warp, int lane)
      : barriers(barriers), owner(place.owner(warp)), source(place.rank), lane(lane) {
    group = warp - place.first_group(owner);
    slot = memory + (group * place.split + source) * PARTIAL_BYTES + lane * 16;
    own = owner == source;
  }

  // All that is left to do are products: complete the sums, and tell the owner if there are others.
  __device__ void begin(float (&factor)[2], bool tell, const float (&top)[2], const float (&sum)[2],
                        float2 (*softmax)[MOST_BLOCKS][16]) const {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float all = quad_sum(sum[h]);
      factor[h] = all > 0 ? 1.0f / all : 0.0f;
      float2* target = &softmax[group][source][lane / 4 + h * 8];
      if (tell && lane % 4 == 0) {
        if (own)
          *target = make_float2(top[h], all);
        else
          ::send(peer_address(target, owner), peer_address(barriers, owner), top[h], all);
      }
    }
  }

  template <int TILES>
  __device__ void send(const float (&tiles)[TILES][4], const float (&factor)[2], int part) const {
    uint8_t* place = slot + (part ? part + 1 : 0) * PARTIAL_BYTES / 4;
    uint32_t target = peer_address(place, owner), there = peer_address(barriers + part, owner);
#pragma unroll
    for (int t = 0; t < TILES; t += 2) {
      uint4 v = {pack_half(tiles[t][0] * factor[0], tiles[t][1] * factor[0]),
                 pack_half(tiles[t][2] * factor[1], tiles[t][3] * factor[1]),
                 pack_half(tiles[t + 1][0] * factor[0], tiles[t + 1][1] * factor[0]),
                 pack_half(tiles[t + 1][2] * factor[1], tiles[t + 1][3] * factor[1])};
      if (own)
        *reinterpret_cast<uint4*>(place + t * 256) = v;
      else
        ::send(target + t * 256, there, v.x, v.y, v.z, v.w);
    }
    if (own) warp_done(barriers + part, lane);
  }
};

// 32 columns of this lane's two rows of a group of 16; rows beyond the last are not written.
__device__ __forceinline__ void store_rows(Output* out, const float (*tiles)[4], int group, int column, int queries,
                                           float inverse_scale, int lane) {
  int query = blockIdx.x * QUERIES + group * 16 + lane / 4;
  Output* row = out + (size_t)query * DIM + column;
  store_four_tiles(query < queries ? row : nullptr, query + 8 < queries ? row + 8 * DIM : nullptr, tiles, inverse_scale, lane);
}

// Add up what `split` blocks found for 16 rows and 32 columns, weighted so that row sums are one.
__device__ __forceinline__ void merge(float (&merged)[4][4], const uint8_t* partials, const float2 (*softmax)[16], int split,
                                      int lane) {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < split; i++) {
#pragma unroll
    for (int h = 0; h < 2; h++) top[h] = fmaxf(top[h], softmax[i][lane / 4 + h * 8].x);
  }
#pragma unroll
  for (int i = 0; i < split; i++) {
    float weight[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float2 found = softmax[i][lane / 4 + h * 8];
      sum[h] += weight[h] = found.y * exp2f(found.x - top[h]);
    }
#pragma unroll
    for (int t = 0; t < 4; t += 2) {
      uint4 raw = *reinterpret_cast<const uint4*>(partials + i * PARTIAL_BYTES + t * 256 + lane * 16);
      const __half2* pairs = reinterpret_cast<const __half2*>(&raw);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float2 pair = __half22float2(pairs[j]);
        merged[t + j / 2][j % 2 * 2] += pair.x * weight[j % 2];
        merged[t + j / 2][j % 2 * 2 + 1] += pair.y * weight[j % 2];
      }
    }
  }
  float factor[2] = {1.0f / sum[0], 1.0f / sum[1]};
  multiply_rows(merged, factor);
}

// What each block does at the end: a warp takes 32 columns of all rows that are finished here. SPLIT is place.split or 0.
template <int SPLIT>
__device__ __forceinline__ void finish(const uint8_t* memory, const float2 (*softmax)[MOST_BLOCKS][16], const Place& place,
                                       Output* out, int queries, float inverse_scale, int warp, int lane) {
  constexpr int MOST_GROUPS = SPLIT ? (WARPS + SPLIT - 1) / SPLIT : 2;
  const int split = SPLIT ? SPLIT : place.split, groups = place.groups();
#pragma unroll
  for (int group = 0; group < MOST_GROUPS; group++) {
    float merged[4][4] = {};
    if (group < groups)
      merge(merged, memory + group * split * PARTIAL_BYTES + warp * 1024, softmax[group], split, lane);
    int rows = group < groups ? queries : 0;
    store_rows(out, merged, place.first_group(place.rank) + group, warp * 32, rows, inverse_scale, lane);
  }
}
