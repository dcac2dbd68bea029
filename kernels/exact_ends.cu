// Both ends of the way back of a flow step with exact guidance (models/guidance.py), one block a row of the chunk.
// Architectures: 80 86 89 90a 100 110 120
//
// exact_begin, behind the last layer: the final norm, the velocity, the pull on the chunk that the step predicts, and what
// becomes of it on its way back through both:
//   n = x / rms(x) * (1 + scale) + shift;   velocity = n W^T + bias;   p = weights * (target - (actions - time * velocity))
//   g = p W * (1 + scale);   gradient = (g - y * mean(g * y)) / rms(x) with y = x / rms(x);   out = bf16(gradient * gate)
// exact_end, behind the first layer: the way back through its norm and the embedding, and the guided step:
//   gradient as in norm_backward.cu;   product = gradient W;   actions -= dt * (velocity - *gamma * (p - time * product))
//
// x, gradient fp32 [rows][WIDTH]; W fp32 [ACTIONS][WIDTH] (exact_end: the embedding's weight, transposed); scale, shift, gate fp32
// [WIDTH], may be null (0, 0, 1); velocity, actions, target, weights fp32 [rows][ACTIONS]; upstream bf16 in `parts`, `stride` apart.
// exact_begin waits before it lets the kernel behind start: those behind it read before their waits what the forward pass left.
// exact_end reads x before the wait, as norm_backward.cu does.
// WIDTH is a multiple of 128, THREADS * 4 at most; ACTIONS a multiple of 8, at most 32. 50 rows: W comes from the second-level
// cache 50 times, 6.6 MB; what decides is the chain of five sums over a block.
#include "common.cuh"

#ifndef WIDTH
#define WIDTH 1024
#endif
#ifndef ACTIONS
#define ACTIONS 32
#endif

constexpr int THREADS = 256, WARPS = THREADS / 32, EACH = ACTIONS / WARPS;
constexpr float EPSILON = 1e-6f;
static_assert(WIDTH <= THREADS * 4 && WIDTH % 128 == 0 && ACTIONS % WARPS == 0 && ACTIONS <= 32, "sizes");

struct Shared {
  float row[WIDTH], actions[ACTIONS];
  float2 partial[2][WARPS];
};

__device__ __forceinline__ float4 load4(const float* source) { return *reinterpret_cast<const float4*>(source); }
__device__ __forceinline__ float dot4(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
__device__ __forceinline__ float4 scaled(float4 a, float4 s) { return make_float4(a.x * s.x, a.y * s.y, a.z * s.z, a.w * s.w); }
__device__ __forceinline__ float4 plus_one(const float* scale, int column) {
  if (!scale) return make_float4(1, 1, 1, 1);
  const float4 s = load4(scale + column);
  return make_float4(1 + s.x, 1 + s.y, 1 + s.z, 1 + s.w);
}

// Sums over the block of both values, for every thread; `turn` alternates from call to call.
__device__ __forceinline__ float2 block_sums(Shared& shared, int turn, float a, float b) {
  a = warp_sum(a), b = warp_sum(b);
  if (threadIdx.x % 32 == 0) shared.partial[turn][threadIdx.x / 32] = make_float2(a, b);
  __syncthreads();
  float2 total = {0, 0};
#pragma unroll
  for (int i = 0; i < WARPS; i++) total.x += shared.partial[turn][i].x, total.y += shared.partial[turn][i].y;
  return total;
}

// Each action's product of a row of W with shared.row, to shared.actions; a warp has EACH of them. The block meets before.
__device__ __forceinline__ void project(Shared& shared, const float* weights) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float sums[EACH] = {};
#pragma unroll
  for (int c = 0; c < WIDTH; c += 128) {
    const float4 x = load4(shared.row + c + lane * 4);
#pragma unroll
    for (int i = 0; i < EACH; i++) sums[i] += dot4(x, load4(weights + (size_t)(warp * EACH + i) * WIDTH + c + lane * 4));
  }
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const float sum = warp_sum(sums[i]);
    if (lane == 0) shared.actions[warp * EACH + i] = sum;
  }
}

// gradient += the way back of g through the norm of x.
__device__ __forceinline__ float4 through_norm(float4 gradient, float4 x, float4 g, float factor, float dot) {
  const float along = dot / WIDTH * factor * factor * factor;
  return make_float4(gradient.x + g.x * factor - x.x * along, gradient.y + g.y * factor - x.y * along,
                     gradient.z + g.z * factor - x.z * along, gradient.w + g.w * factor - x.w * along);
}

__device__ __forceinline__ float pull_of(float action, float velocity, float target, float weight, float time) {
  return weight * (target - (action - time * velocity));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    exact_begin(const float* x, const float* scale, const float* shift, const float* gate, const float* out_weight,
                const float* out_bias, const float* actions, const float* target, const float* weights, float time,
                float* velocity, float* gradient, bf16* out) {
  __shared__ Shared shared;
  const int column = threadIdx.x * 4, action = blockIdx.x * ACTIONS + threadIdx.x;
  const bool active = column < WIDTH;
  const size_t place = (size_t)blockIdx.x * WIDTH + column;
  wait_for_predecessor();
  release_successor();
  float4 value = {}, modulation = {};
  if (active) value = load4(x + place), modulation = plus_one(scale, column);
  const float factor = rsqrtf(block_sums(shared, 0, dot4(value, value), 0).x / WIDTH + EPSILON);
  if (active) {
    const float4 offset = shift ? load4(shift + column) : make_float4(0, 0, 0, 0);
    float* row = shared.row + column;
    row[0] = value.x * factor * modulation.x + offset.x, row[1] = value.y * factor * modulation.y + offset.y;
    row[2] = value.z * factor * modulation.z + offset.z, row[3] = value.w * factor * modulation.w + offset.w;
  }
  __syncthreads();
  project(shared, out_weight);
  __syncthreads();
  if (threadIdx.x < ACTIONS) {
    const float v = shared.actions[threadIdx.x] + out_bias[threadIdx.x];
    velocity[action] = v;
    shared.actions[threadIdx.x] = pull_of(actions[action], v, target[action], weights[action], time);
  }
  __syncthreads();
  float4 g = make_float4(0, 0, 0, 0);
  if (active) {
#pragma unroll 16
    for (int i = 0; i < ACTIONS; i++) {
      const float p = shared.actions[i];
      const float4 w = load4(out_weight + (size_t)i * WIDTH + column);
      g.x += p * w.x, g.y += p * w.y, g.z += p * w.z, g.w += p * w.w;
    }
    g = scaled(g, modulation);
  }
  const float dot = block_sums(shared, 1, dot4(value, g), 0).x;
  if (!active) return;
  float4 total = through_norm(make_float4(0, 0, 0, 0), value, g, factor, dot);
  *reinterpret_cast<float4*>(gradient + place) = total;
  if (gate) total = scaled(total, load4(gate + column));
  __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(total.x, total.y), __floats2bfloat162_rn(total.z, total.w)};
  *reinterpret_cast<uint2*>(out + place) = *reinterpret_cast<uint2*>(pairs);
}

// Four values of a product in parts, added up.
__device__ __forceinline__ float4 add_parts(const bf16* source, int parts, size_t stride) {
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
  for (int part = 0; part < parts; part++) {
    const uint2 raw = *reinterpret_cast<const uint2*>(source + part * stride);
    const float2 low = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(raw.x));
    const float2 high = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(raw.y));
    sum.x += low.x, sum.y += low.y, sum.z += high.x, sum.w += high.y;
  }
  return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    exact_end(const float* x, const bf16* upstream, int parts, int stride, const float* scale, const float* gradient,
              const float* in_weight, const float* velocity, const float* target, const float* weights, const float* gamma,
              float time, float dt, float* actions) {
  __shared__ Shared shared;
  const int column = threadIdx.x * 4, action = blockIdx.x * ACTIONS + threadIdx.x;
  const bool active = column < WIDTH;
  const size_t place = (size_t)blockIdx.x * WIDTH + column;
  float4 value = {}, before = {}, g = {};
  if (active) value = load4(x + place), g = plus_one(scale, column);
  wait_for_predecessor();
  release_successor();
  if (active) before = load4(gradient + place), g = scaled(g, add_parts(upstream + place, parts, stride));
  const float2 sums = block_sums(shared, 0, dot4(value, value), dot4(value, g));
  if (active)
    *reinterpret_cast<float4*>(shared.row + column) =
        through_norm(before, value, g, rsqrtf(sums.x / WIDTH + EPSILON), sums.y);
  __syncthreads();
  project(shared, in_weight);
  __syncthreads();
  if (threadIdx.x >= ACTIONS) return;
  const float v = velocity[action];
  const float p = pull_of(actions[action], v, target[action], weights[action], time) - time * shared.actions[threadIdx.x];
  actions[action] -= dt * (v - *gamma * p);
}
