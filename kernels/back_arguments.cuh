// Arguments of the way back through the layers of the action expert (back_layers.cu), mirrored by engine/expert/back.py.
#pragma once
#define SLOT_BYTES 4096  // of the stream: a warpgroup takes every second slot, and q, k and v have five of 8 KB
#include "expert_attention.cuh"
#include "expert_residual.cuh"

// Blocks that share 64 columns of a product with a norm in front: each multiplies an eighth of its K, and in the end keeps 16 rows of
// 32 columns (Place, expert_residual.cuh).
constexpr int PARTS = 8, NORMED_COLUMNS = 64;
constexpr int DOWN_COLUMNS = 32, OUTPUT_COLUMNS = 16;
constexpr int ATTENDED = HEADS * DIM, TURNED = (HEADS + 2) * DIM;
constexpr int DOTS = BLOCKS * 2;  // writers of products of a row of the gradient and of x: each warpgroup, over 32 columns

struct BackArguments {
  const uint8_t *qkv_weights, *output_weights, *gate_up_weights, *down_weights;  // bf16 [L][128 blocks][bytes of one]
  const float *gate, *scale;        // of the norms, [flow steps, or 1][2 L + 1][1024]; scale: 1 + scale
  const float* rotary;              // [position][128] (cos, sin)
  const int* length;                // valid rows of the prefix
  const float *x, *squares;         // of the forward pass from here on (expert_arguments.cuh, Kept)
  const uint4 *queries, *keys, *values;
  const uint32_t *gate_up, *attended;
  const float* log_sums;
  float* gradient;                  // of the residual stream, fp32 [64][1024], in and out
  uint32_t* arriving;               // bf16 [64][1024]: the gradient of what the first norm of all gives
  uint32_t *gated_down, *gated_output;  // exchange buffers, two halves each, from here on: fragments, K = 1024
  uint32_t* hidden;                     // fragments, K = 8192: 16 gates, their 16 ups, ..
  uint32_t* upstream;                   // of attention's result: fragments of flat rows [32 tiles][16 steps]
  uint32_t* turned;                     // fragments, K = 2560: of raw q, k and v
  uint2* query_parts;                   // [128 blocks][8 writers][8][32]
  uint2* key_parts;                     // [128 blocks][16 groups][keys, values][32]
  uint4 *qkv_parts, *gate_up_parts;     // [128 blocks][8 writers][64]
  uint32_t *qkv_dots, *gate_up_dots;    // [256 writers][64 rows]
  unsigned long long* stamps;           // compiled with TIMELINE
  int layers, rows, state_token, capacity;
  int table_row;     // of gate and scale
  int first, last;   // layers, from the first, which is the higher, to the last
  int number;        // of exchanges of the first layer: goes up by one from layer to layer and from flow step to flow step
  int phases;        // which parts run: all; tests run one at a time
  int shared_bytes;
};

__device__ __forceinline__ float4 load4(const float* source) { return *reinterpret_cast<const float4*>(source); }
