// One Euler step of the flow with its guidance (models/guidance.py), element by element.
// Architectures: 80 86 89 90a 100 110 120
//
//   p        = weights * (target - (actions - time * velocity))      the pull on the clean chunk that the step predicts
//   guided   = velocity - *gamma * (p - time * product)              product: p times the Jacobian of velocity, or null
//   actions -= dt * guided
// The first *frozen rows become the target instead; without velocity nothing else happens. With weights 0 and *frozen 0 the
// result is that of the unguided step, to the last bit.
//
// All fp32 [size / columns][columns]. One thread an element.
#include "common.cuh"

__device__ __forceinline__ float pull_of(float action, float velocity, float target, float weight, float time) {
  return weight * (target - (action - time * velocity));
}

extern "C" __global__ void __launch_bounds__(256)
    flow_step(float* actions, const float* velocity, const float* product, const float* target, const float* weights,
              const float* gamma, const int* frozen, float time, float dt, int columns, int size) {
  wait_for_predecessor();
  release_successor();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= size) return;
  if (i < *frozen * columns) {
    actions[i] = target[i];
    return;
  }
  if (!velocity) return;
  float v = velocity[i], p = pull_of(actions[i], v, target[i], weights[i], time);
  if (product) p -= time * product[i];
  actions[i] -= dt * (v - *gamma * p);
}
