// What the kernels of the action expert's denoise loop share: layouts of activations and weights, matrix products.
//
// All of the at most 64 rows are multiplied at once: m64 is the native height of wgmma. Activations come straight from L2 into
// registers in the order in which wgmma wants them ("fragments"), weights from shared memory.
//
// Fragments. A "step" is 32 bytes of K: 32 e4m3 or int8 or 16 bf16 values. Activations of K values are stored as
// [K / step][row tile of 16][lane 32][16 bytes]; lane l holds rows l / 4 and l / 4 + 8 as registers
// {row, low}, {row + 8, low}, {row, high}, {row + 8, high}, the operand A of wgmma. Which K value sits where inside a step is
// free, as long as weights are packed alike. Two orders are in use:
//  linear       lane quarter c holds values c * n/4 .. of the step's n values: what writers of whole rows produce;
//  accumulator  lane quarter c holds what it holds of wgmma's accumulator: columns 2c, 2c + 1 of each tile of 8.
// Weights of a slice are stored as [step][half of step][column / 8][column % 8][16 bytes], wgmma's layout without swizzle.
#pragma once
#include "mma.cuh"

constexpr int WIDTH = 1024;
constexpr int HEADS = 8;
constexpr int DIM = 256;
constexpr int ROWS = 64;
constexpr int ROW_TILES = ROWS / 16;
constexpr int STEP_FRAGMENTS = ROW_TILES * 32;
constexpr int STATISTICS = 32;  // partial sums of squares per row, one for each writer of 32 columns
constexpr int THREADS = 256;    // two warpgroups, each multiplying one half of K
constexpr float EPSILON = 1e-6f;

// Formats of operands: values in a step, bytes of one, and what products of them add up in. Down: the format of the hidden layer
// and of down's weights.
struct Bf16 {
  static constexpr int STEP = 16, SIZE = 2;
  using Sum = float;
  using Down = Bf16;
};
struct Fp8 {
  static constexpr int STEP = 32, SIZE = 1;
  using Sum = float;
  using Down = Fp8;
};
struct Int8 {
  static constexpr int STEP = 32, SIZE = 1;
  using Sum = int32_t;
  using Down = Fp8;  // the product of GELU and up has tails too long for integers
};
// Of gradients, by weights in e4m3: the range of half precision, as nobody has seen gradients before they come.
struct E5m2 {
  static constexpr int STEP = 32, SIZE = 1;
  using Sum = float;
};

// ---- matrix product: accumulator[64 x COLUMNS] of one warpgroup, A from registers, weights from shared memory

template <int COLUMNS>
__device__ __forceinline__ uint64_t weight_descriptor(uint32_t address) {
  constexpr uint64_t BETWEEN_HALVES = COLUMNS * 16, BETWEEN_COLUMN_GROUPS = 128;
  return ((address & 0x3ffff) >> 4) | (BETWEEN_HALVES >> 4) << 16 | (BETWEEN_COLUMN_GROUPS >> 4) << 32;
}

#define ACC4(C, d, i) C(d[i]), C(d[i + 1]), C(d[i + 2]), C(d[i + 3])
#define ACC16(C, d, i) ACC4(C, d, i), ACC4(C, d, i + 4), ACC4(C, d, i + 8), ACC4(C, d, i + 12)
#define WGMMA_16(SHAPE, TYPES, C, TAIL) \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\nwgmma.mma_async.sync.aligned." SHAPE "." TYPES \
               " {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, %12, p" TAIL ";\n}" \
               : ACC4(C, d, 0), ACC4(C, d, 4) \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(more))
#define WGMMA_32(SHAPE, TYPES, C, TAIL) \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\nwgmma.mma_async.sync.aligned." SHAPE "." TYPES \
               " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19}, %20, p" TAIL \
               ";\n}" \
               : ACC16(C, d, 0) \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(more))
#define WGMMA_64(SHAPE, TYPES, C, TAIL) \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned." SHAPE "." TYPES \
               " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
               "%23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p" TAIL ";\n}" \
               : ACC16(C, d, 0), ACC16(C, d, 16) \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(more))

__device__ __forceinline__ void multiply_step(Fp8, float (&d)[16], const uint4& a, uint64_t b, int more) {
  WGMMA_32("m64n32k32", "f32.e4m3.e4m3", "+f", ", 1, 1");
}
__device__ __forceinline__ void multiply_step(Bf16, float (&d)[16], const uint4& a, uint64_t b, int more) {
  WGMMA_32("m64n32k16", "f32.bf16.bf16", "+f", ", 1, 1, 0");
}
__device__ __forceinline__ void multiply_step(Bf16, float (&d)[8], const uint4& a, uint64_t b, int more) {
  WGMMA_16("m64n16k16", "f32.bf16.bf16", "+f", ", 1, 1, 0");
}
__device__ __forceinline__ void multiply_step(Fp8, float (&d)[32], const uint4& a, uint64_t b, int more) {
  WGMMA_64("m64n64k32", "f32.e4m3.e4m3", "+f", ", 1, 1");
}
__device__ __forceinline__ void multiply_step(Bf16, float (&d)[32], const uint4& a, uint64_t b, int more) {
  WGMMA_64("m64n64k16", "f32.bf16.bf16", "+f", ", 1, 1, 0");
}
__device__ __forceinline__ void multiply_step(E5m2, float (&d)[8], const uint4& a, uint64_t b, int more) {
  WGMMA_16("m64n16k32", "f32.e5m2.e4m3", "+f", ", 1, 1");
}
__device__ __forceinline__ void multiply_step(E5m2, float (&d)[16], const uint4& a, uint64_t b, int more) {
  WGMMA_32("m64n32k32", "f32.e5m2.e4m3", "+f", ", 1, 1");
}
__device__ __forceinline__ void multiply_step(E5m2, float (&d)[32], const uint4& a, uint64_t b, int more) {
  WGMMA_64("m64n64k32", "f32.e5m2.e4m3", "+f", ", 1, 1");
}
__device__ __forceinline__ void multiply_step(Int8, int32_t (&d)[16], const uint4& a, uint64_t b, int more) {
  WGMMA_32("m64n32k32", "s32.s8.s8", "+r", "");
}
__device__ __forceinline__ void multiply_step(Int8, int32_t (&d)[32], const uint4& a, uint64_t b, int more) {
  WGMMA_64("m64n64k32", "s32.s8.s8", "+r", "");
}

// ---- writing activations as fragments: store(index of a 32-bit word, word)

// Four values of 8 bits. Integers leave out the word of four times -1, which stands for what has not come yet
// (expert_exchange.cuh): one of the four becomes -2.
__device__ __forceinline__ uint32_t pack_four(Fp8, float4 v) { return e4m3x4(v.x, v.y, v.z, v.w); }
__device__ __forceinline__ uint32_t pack_four(E5m2, float4 v) {
  const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(v.x, v.y), __NV_SATFINITE, __NV_E5M2);
  return low | (uint32_t)__nv_cvt_float2_to_fp8x2(make_float2(v.z, v.w), __NV_SATFINITE, __NV_E5M2) << 16;
}
__device__ __forceinline__ uint32_t pack_four(Int8, float4 v) { return min(int8x4(v.x, v.y, v.z, v.w), 0xfffffffeu); }

// Four neighbouring values of a row, in linear order; column is a multiple of 4.
template <class P, class Store>
__device__ __forceinline__ void store_linear(P format, int row, int column, float4 v, Store store) {
  int lane = row % 8 * 4 + column % 32 / 8, reg = column % 8 / 4 * 2 + row % 16 / 8;
  store(((column / 32 * ROW_TILES + row / 16) * 32 + lane) * 4 + reg, pack_four(format, v));
}
template <class Store>
__device__ __forceinline__ void store_linear(Bf16, int row, int column, float4 v, Store store) {
  int lane = row % 8 * 4 + column % 16 / 4, place = ((column / 16 * ROW_TILES + row / 16) * 32 + lane) * 4 + row % 16 / 8;
  store(place, pack_bf16(v.x, v.y));
  store(place + 2, pack_bf16(v.z, v.w));
}

// Values of a row at columns column, + 1, + 8 and + 9, in accumulator order; column is even and column % 16 < 8.
template <class P, class Store>
__device__ __forceinline__ void store_accumulator(P format, int row, int column, float4 v, Store store) {
  int lane = row % 8 * 4 + column % 8 / 2, reg = column % 32 / 16 * 2 + row % 16 / 8;
  store(((column / 32 * ROW_TILES + row / 16) * 32 + lane) * 4 + reg, pack_four(format, v));
}
template <class Store>
__device__ __forceinline__ void store_accumulator(Bf16, int row, int column, float4 v, Store store) {
  int lane = row % 8 * 4 + column % 8 / 2, place = ((column / 16 * ROW_TILES + row / 16) * 32 + lane) * 4 + row % 16 / 8;
  store(place, pack_bf16(v.x, v.y));
  store(place + 2, pack_bf16(v.z, v.w));
}
