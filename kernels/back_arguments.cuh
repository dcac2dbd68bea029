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

// FP8: 0 for weights and gradients in bf16; 1 for weights in e4m3, with a scale of each column of the result, and gradients in e5m2
// where products take them. Those are scaled by one power of two (BackScale) from where they enter the first product on.
#if FP8
using Gradients = E5m2;
#else
using Gradients = Bf16;
#endif
constexpr bool NARROW = Gradients::SIZE == 1;

struct BackArguments {
  const uint8_t *qkv_weights, *output_weights, *gate_up_weights, *down_weights;  // [L][128 blocks][bytes of one]
  const float *output_scale, *down_scale;  // FP8: of the weights, [L][2048], [L][4096]
  const float *gate, *scale;        // of the norms, [flow steps, or 1][2 L + 1][1024]; scale: 1 + scale; FP8: times the weights' scale
                                    // of the product behind the norm, and of the first norm that alone
  const float* rotary;              // [position][128] (cos, sin)
  const int* length;                // valid rows of the prefix
  const float *x, *squares;         // of the forward pass from here on (expert_arguments.cuh, Kept)
  const uint4 *queries, *keys, *values;
  const uint4 *gate_up, *attended;
  const float* log_sums;
  float* gradient;                  // of the residual stream, fp32 [64][1024], in and out
  uint32_t* arriving;               // bf16 [64][1024]: the gradient of what the first norm of all gives
  uint32_t *gated_down, *gated_output;  // exchange buffers, two halves each, from here on: fragments, K = 1024
  uint32_t* hidden;                     // fragments, K = 8192: 16 gates, their 16 ups, .. (FP8: together a step)
  uint32_t* upstream;                   // of attention's result: fragments of flat rows [32 tiles][16 steps]
  uint32_t* turned;                     // fragments, K = 2560: of raw q, k and v (FP8: 8 dimensions, their rotary partners, ..)
  uint2* query_parts;                   // [128 blocks][8 writers][8][32]
  uint2* key_parts;                     // [128 blocks][16 groups][keys, values][32]
  uint4 *qkv_parts, *gate_up_parts;     // [128 blocks][8 writers][64]
  uint32_t *qkv_dots, *gate_up_dots;    // [256 writers][64 rows]; FP8: bf16 [4 row tiles][256 writers][8][rows r and r + 8]
  unsigned long long* stamps;           // compiled with TIMELINE
  int layers, rows, state_token, capacity;
  int table_row;     // of gate and scale
  int first, last;   // layers, from the first, which is the higher, to the last
  int number;        // of exchanges of the first layer: goes up by one from layer to layer and from flow step to flow step
  int phases;        // which parts run: all; tests run one at a time
  int shared_bytes;
};

__device__ __forceinline__ float4 load4(const float* source) { return *reinterpret_cast<const float4*>(source); }
// A load that the compiler may not put off.
__device__ __forceinline__ float4 look4(const float* source) { return restored(look(reinterpret_cast<const uint4*>(source))); }
