// Both ends of a flow step of the action expert: the velocity and Euler update of the actions, and their embedding for the next.
//
// Embedding: h = actions in_weight + in_bias. pi0.5: h is x, and its first norm is prepared as in expert_residual.cuh.
//   pi0: silu(h) as bf16 fragments in linear order, the input of the second embedding layer.
// Update: v = (x / rms * final_scale + final_shift) out_weight^T + out_bias; actions += dt * v. All fp32. Action i is row
//   state_token + i of x.
// Guidance (models/guidance.py): v -= gamma * pull * (target - (actions - time * v)); and the first *frozen actions are the
//   target, whatever they were. pull 0 and *frozen 0 leave everything as it is, to the last bit.
//
// A block has 16 rows x 32 columns of x (expert_residual.cuh). With y = x * final_scale, the velocity is
//   v[row][o] = 1 / rms[row] * sum over columns of y * out_weight[o][column]  +  final_shift out_weight^T + out_bias
// where the last two are a table of the flow step (velocity_shift). Each block sends its part of the sums and of the squares to
// all 32 blocks with the same rows, the one exchange of a flow step; each of those adds them up in the same order and keeps the
// actions of its rows in shared memory, so that it can embed them for its own columns. Bytes: 64 KB a block, from L2.
#pragma once
#include "expert_residual.cuh"

constexpr int ACTIONS = 32, COLUMN_GROUPS = BLOCKS / GROUP;

__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// What of the ends' weights concerns this block's 32 columns, [32 outputs or actions][32 columns], in the half of Exchange that
// only the second warpgroup reads otherwise. By that warpgroup, when it has read.
__device__ __forceinline__ void load_ends(const Arguments& a, Exchange& exchange) {
  asm volatile("bar.sync 3, 128;" ::: "memory");
  const int thread = threadIdx.x % 128, column = blockIdx.x / GROUP * RESIDUAL_COLUMNS + thread % 8 * 4;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float* table = i < 2 ? a.ends.out_weight : a.ends.in_weight;
    exchange[0][i][thread] = *reinterpret_cast<const float4*>(table + (i % 2 * 16 + thread / 8) * WIDTH + column);
  }
}

// Where the four actions of a thread are among those of all rows.
__device__ __forceinline__ int action_place(int index) { return index * (ACTIONS / 4) + threadIdx.x % 8; }

// Two lanes `distance` apart add up their first 2 N values; the upper one keeps the upper half.
template <int N>
__device__ __forceinline__ void add_and_halve(float (&p)[ACTIONS], bool upper, int distance) {
#pragma unroll
  for (int i = 0; i < N; i++) {
    float given = upper ? p[i] : p[i + N], own = upper ? p[i + N] : p[i];
    p[i] = own + __shfl_xor_sync(0xffffffffu, given, distance);
  }
}

// This block's part of the velocities of its rows: thread t of the first 128 sends four outputs 4 (t % 8) .. of row t / 8.
__device__ __forceinline__ void send_velocities(const Arguments& a, const Exchange& exchange, const Place& place, float4 x,
                                                int step, int table_row) {
  const int lane = threadIdx.x % 32, half = step & 1, thread = threadIdx.x;
  const size_t norm = (size_t)table_row * (2 * a.layers + 1) + 2 * a.layers;
  const float4* weight = exchange[0][0];
  const float4 y = x * *reinterpret_cast<const float4*>(a.norm_scale + norm * WIDTH + place.column);
  float square = x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
  float p[ACTIONS];
#pragma unroll
  for (int i = 0; i < ACTIONS; i++) {
    float4 w = weight[i * 8 + thread % 8];
    p[i] = y.x * w.x + y.y * w.y + y.z * w.z + y.w * w.w;
  }
  add_and_halve<16>(p, lane & 4, 4);
  add_and_halve<8>(p, lane & 2, 2);
  add_and_halve<4>(p, lane & 1, 1);
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) square += __shfl_xor_sync(0xffffffffu, square, offset);
  const int group = (half * GROUP + blockIdx.x % GROUP) * COLUMN_GROUPS + blockIdx.x / GROUP;
  put_tagged(a.ends.velocities + (size_t)group * 128 + thread,
             make_uint4(__float_as_uint(p[0]), __float_as_uint(p[1]), __float_as_uint(p[2]), __float_as_uint(p[3])), tag_of(step));
  if (thread % 8 == 0) put_tagged(a.ends.squares + group * 16 + thread / 8, make_uint2(__float_as_uint(square), 0), tag_of(step));
}

// Sums over all columns: four outputs and the squares of the thread's row, complete in the first warpgroup. Two block barriers.
__device__ __forceinline__ float4 gather_velocities(const Arguments& a, Exchange& exchange, Squares& squares, int step,
                                                    float& square) {
  constexpr int SENT = COLUMN_GROUPS / 2;
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128;
  const int from = ((step & 1) * GROUP + blockIdx.x % GROUP) * COLUMN_GROUPS + group * SENT;
  const uint4* parts = a.ends.velocities + (size_t)from * 128 + thread;
  const uint2* own_squares = a.ends.squares + (from + thread % 8 * 2) * 16 + thread / 8;
  uint4 v[SENT], sign[1];
  uint2 q[2];
  await_tagged(sign, parts + (SENT - 1) * 128, 0, tag_of(step));
  for (int patience = PATIENCE;; patience--) {
    look_all(v, parts, 128);
    look_all(q, own_squares, 16);
    if (!__any_sync(0xffffffffu, wrong_tags(v, tag_of(step)) | wrong_tags(q, tag_of(step)))) break;
    if (patience == 0) __trap();
  }
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int i = 0; i < SENT; i++)
    sum = sum + make_float4(__uint_as_float(v[i].x), __uint_as_float(v[i].y), __uint_as_float(v[i].z), __uint_as_float(v[i].w));
  square = __uint_as_float(q[0].x) + __uint_as_float(q[1].x);
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) square += __shfl_xor_sync(0xffffffffu, square, offset);
  if (group == 1) exchange[1][0][thread] = sum, squares[threadIdx.x] = square;
  block_barrier();
  if (group == 0) sum = sum + exchange[1][0][thread], square += squares[threadIdx.x + 128];
  // The second warpgroup writes there again when the first has read.
  if (group == 0) asm volatile("bar.arrive 4, 256;" ::: "memory");
  else asm volatile("bar.sync 4, 256;" ::: "memory");
  return sum;
}

// Four actions of a row after the flow step. index: of the row among the actions.
__device__ __forceinline__ float4 update_actions(const Arguments& a, float4 action, float4 sum, float square, int index, int step,
                                                 int table_row) {
  const int place = index * ACTIONS + threadIdx.x % 8 * 4;
  if (index < *a.frozen) return action;
  const float factor = rsqrtf(square * (1.0f / WIDTH) + EPSILON);
  const float time = 1.0f - (float)step / a.ends.steps, dt = -1.0f / a.ends.steps;
  const float gamma = a.ends.gammas[step];
  const float4 shift = *reinterpret_cast<const float4*>(a.ends.velocity_shift + table_row * ACTIONS + threadIdx.x % 8 * 4);
  const float4 target = *reinterpret_cast<const float4*>(a.ends.target + place);
  const float4 pull = *reinterpret_cast<const float4*>(a.ends.pull + place);
  const auto next = [&](float old, float part, float shift, float target, float pull) {
    float velocity = part * factor + shift;
    velocity -= gamma * pull * (target - (old - time * velocity));
    return old + dt * velocity;
  };
  return make_float4(next(action.x, sum.x, shift.x, target.x, pull.x), next(action.y, sum.y, shift.y, target.y, pull.y),
                     next(action.z, sum.z, shift.z, target.z, pull.z), next(action.w, sum.w, shift.w, target.w, pull.w));
}

// Between embedding and whoever writes over its weights: the first warpgroup with a product's sums, the second with `load_ends`.
// By the whole block.
__device__ __forceinline__ void weights_read() { asm volatile("bar.sync 5, 256;" ::: "memory"); }

// Actions of the row, which its eight threads hold, times in_weight: this thread's four columns. `weights_read` for the other
// threads.
__device__ __forceinline__ float4 embed_actions(const Arguments& a, const Exchange& exchange, const Place& place, float4 action,
                                                int step) {
  const float4* weight = exchange[0][2];
  float4 h = *reinterpret_cast<const float4*>(a.ends.in_bias + (size_t)step * a.ends.bias_stride + place.column);
  const float own[4] = {action.x, action.y, action.z, action.w};
#pragma unroll
  for (int i = 0; i < ACTIONS; i++) {
    float4 w = weight[i * 8 + threadIdx.x % 8];
    float value = __shfl_sync(0xffffffffu, own[i % 4], threadIdx.x % 32 / 8 * 8 + i / 4);
    h = make_float4(h.x + value * w.x, h.y + value * w.y, h.z + value * w.z, h.w + value * w.w);
  }
  weights_read();
  return h;
}

// The embedded row for the flow step's first product: pi0.5's first norm, or pi0's second embedding layer. Returns x.
// own: place of the row's modulation in norm_scale.
template <class P>
__device__ __forceinline__ float4 publish_embedding(const Arguments& a, const Place& place, float4 h, bool acts, int step,
                                                    int own) {
  if (a.phases & EMBED) {
    uint32_t* words = a.embedded;
    if (acts)
      store_linear(Bf16(), place.row, place.column, make_float4(silu(h.x), silu(h.y), silu(h.z), silu(h.w)),
                   [=](int i, uint32_t word) { publish(words, (size_t)ROWS * WIDTH / 2, step, i, word); });
    return h;
  }
  const int half = step * a.layers & 1;
  float square = h.x * h.x + h.y * h.y + h.z * h.z + h.w * h.w;
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) square += __shfl_xor_sync(0xffffffffu, square, offset);
  if (acts) {
    uint32_t* next = a.normed_qkv.fragments + half * (ROWS * WIDTH * P::SIZE / 4);
    const float4 scale = *reinterpret_cast<const float4*>(a.norm_scale + own + place.column) * a.scales[a.layers * 4];
    store_linear(P(), place.row, place.column, h * scale, [=](int i, uint32_t word) { put(next + i, word); });
    if (threadIdx.x % 8 == 0)
      put(a.normed_qkv.statistics + half * STATISTICS * ROWS + blockIdx.x / GROUP * ROWS + place.row, __float_as_uint(square));
  }
  return acts ? h : make_float4(0, 0, 0, 0);
}
