// Arguments of the layers of the action expert (expert_layers.cu), mirrored by engine/expert/arguments.py.
#pragma once
#include "expert_stream.cuh"

constexpr int QKV_BLOCKS = (HEADS + 2) * DIM / 32, BLOCKS = 128, MLP = 4096;
constexpr int ATTENTION_CLUSTER = 8, QUERIES = 32;
enum Phase { EMBED = 1, QKV = 2, ATTENTION = 4, OUTPUT = 8, GATE_UP = 16, DOWN = 32, ACTIONS_IN = 64 };

// Whether the kernel is compiled for exact guidance and for tests of single phases: one flow step a launch, `Kept` written, and the
// actions left as they are.
#ifdef KEEPS
constexpr bool KEEPING = true;
#else
constexpr bool KEEPING = false;
#endif

// One product in all layers: weights packed by block, scale of each column.
struct Product {
  const uint8_t* weights;
  const float* scale;
};

// A normed input of a product: fragments, and partial sums of squares [32][64].
struct Normed {
  uint32_t* fragments;
  uint32_t* statistics;
};

// What the way back needs of the forward pass (back_layers.cu): where many threads read it, in the order in which each finds 16 bytes
// of its own beside its neighbour's. A flat row is head * rows + row. Rows beyond the last are not written; of `attended` the way back
// reads those of a tile that is used, so they have to be finite.
struct Kept {
  float* x;           // [2 L + 1][64][1024]: what each norm normalises, between the first and the last one in tiles (KeptTile)
  uint32_t* queries;  // bf16 [L][64][2048], rotated, unscaled
  uint32_t *keys, *values;  // bf16 [L][capacity][256], the prefix's buffers: rows go behind the prefix
  uint4* gate_up;     // bf16 [L][128 blocks][gate, up][256 threads]: columns c, c + 1 of rows r and r + 8; the same of c + 8, c + 9
  uint2* attended;    // bf16 [L][flat row / 16][16 steps][lane][rows r, r + 8]: columns c, c + 1, c + 8, c + 9 of attention's result
  float* log_sums;    // [L][512 flat rows]: log2 of the sum of exponentials, of logits in units of log2(e)
  float* squares;     // [2 L + 1][64][32]: sums of squares of x over 32 columns each; not of the first norm
};

// What the ends of a flow step need (expert_ends.cuh).
struct Ends {
  const float *out_weight, *velocity_shift;  // [32][1024]; [flow steps, or 1][32]
  const float *in_weight, *in_bias;          // [32][1024]; [flow steps, or 1][1024]
  const float *target, *pull, *gammas;       // guidance: [H][32], [H][32], [flow steps]
  float* actions;                            // [H][32], in and out
  uint4* velocities;                         // exchange [4 row tiles][32 column groups][128]
  uint2* squares;                            // exchange [4][32][16]
  int steps, bias_stride;                    // flow steps; values from one row of in_bias to the next, or 0
};

struct Arguments {
  Product qkv, output, gate_up, down, mixer;
  const float *qkv_bias, *gate_up_bias;  // [flow steps, or 1][L][2560], [L][8192]
  const float *gate, *norm_scale;        // [flow steps, or 1][2 L + 1][1024]
  const float* scales;                   // [2][L][4]: of activations, and inverses
  const float2* rotary;                  // [position][128] (cos, sin)
  const int* length;                     // valid rows of the prefix
  const uint4 *prefix_k, *prefix_v;      // bf16 [L][capacity][256]
  Normed normed_qkv, normed_gate_up;     // exchange buffers, from here on: two halves each
  uint32_t *queries, *keys, *values;
  uint2* sums;           // attention [16 groups][8 readers][8 writers][8][32]
  uint2* softmax;        // [16 groups][8 writers][32]: sum of exponentials, maximum
  uint32_t* attended;    // fragments, K = 2048
  uint4* output_parts;   // [128 blocks][4 writers][128]
  uint32_t* hidden;      // fragments, K = 4096
  uint4* down_parts;     // as output_parts
  uint4* mixer_parts;    // as output_parts; its halves alternate with the flow steps
  uint32_t* embedded;    // pi0: bf16 fragments, K = 1024; its halves alternate with the flow steps; the last exchange buffer here
  const float* base;     // pi0: what the mixer adds to, fp32 [64][1024]
  unsigned long long* stamps;
  Kept kept;             // of every layer, if compiled with KEEPS
  const int* frozen;     // how many action rows are clean already: theirs is the modulation of flow time 0; null for none
  int capacity, layers, rows, state_token;
  int step;          // KEEPS: the flow step to run
  int phases;        // which parts run: all; tests run one at a time
  int normed_layers; // how many layers' first norm to prepare: `layers`, as the flow prepares the next
  int shared_bytes;
  int clean;         // row of flow time 0 in the tables of qkv_bias, gate_up_bias, gate, norm_scale and velocity_shift
  Ends ends;
};

// The action rows that are clean already, and the row of flow time 0 in the tables, whose modulation is theirs.
// In shared memory, to be looked at, not kept in registers.
struct Frozen {
  int rows, clean;
};

// Where the modulation of a flow step and of one of its rows is, in tables of one row, or of one a step and one for flow time 0.
struct Modulated {
  const Frozen& frozen;
  int step;
  __device__ int table_row() const { return min(step, frozen.clean); }
  __device__ int offset(int row, int width) const { return (row < frozen.rows ? frozen.clean : table_row()) * width; }
};

#ifdef TIMELINE
#define STAMP(ARGUMENTS, LAYER, POINT) \
  if ((LAYER) == TIMELINE && threadIdx.x == 0) { \
    unsigned long long now; \
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)); \
    (ARGUMENTS).stamps[(POINT)*132 + blockIdx.x] = now; \
  }
#else
#define STAMP(ARGUMENTS, LAYER, POINT)
#endif
