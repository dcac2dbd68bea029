// wgmma of 64 rows by 16 to 256 columns on tiles in shared memory (sm_90a), chosen by the size of the accumulator.
//   wgmma_step<Operand>(d, a, b): d [64, 8 * TILES] += a [64, 32 bytes] * b [8 * TILES, 32 bytes]^T
// Operands are bf16 or e4m3 and d fp32, or they are int8_t and d int32_t.
// Operands are descriptors from `swizzled_rows`; see wgmma.cuh for their layout and attention.cuh for that of d.
#pragma once
#include "wgmma.cuh"

// Names and operands of a pair of accumulator tiles.
#define NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define NAMES_1 NAMES_0 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_2 NAMES_1 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define NAMES_3 NAMES_2 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_4 NAMES_3 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define NAMES_5 NAMES_4 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_6 NAMES_5 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define NAMES_7 NAMES_6 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_8 NAMES_7 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define NAMES_9 NAMES_8 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define NAMES_10 NAMES_9 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define NAMES_11 NAMES_10 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_12 NAMES_11 ", %96, %97, %98, %99, %100, %101, %102, %103"

#define TILE_OPERANDS(C, t) C(d[t][0]), C(d[t][1]), C(d[t][2]), C(d[t][3])
#define OPERANDS_0(C) TILE_OPERANDS(C, 0), TILE_OPERANDS(C, 1)
#define OPERANDS_1(C) OPERANDS_0(C), TILE_OPERANDS(C, 2), TILE_OPERANDS(C, 3)
#define OPERANDS_2(C) OPERANDS_1(C), TILE_OPERANDS(C, 4), TILE_OPERANDS(C, 5)
#define OPERANDS_3(C) OPERANDS_2(C), TILE_OPERANDS(C, 6), TILE_OPERANDS(C, 7)
#define OPERANDS_4(C) OPERANDS_3(C), TILE_OPERANDS(C, 8), TILE_OPERANDS(C, 9)
#define OPERANDS_5(C) OPERANDS_4(C), TILE_OPERANDS(C, 10), TILE_OPERANDS(C, 11)
#define OPERANDS_6(C) OPERANDS_5(C), TILE_OPERANDS(C, 12), TILE_OPERANDS(C, 13)
#define OPERANDS_7(C) OPERANDS_6(C), TILE_OPERANDS(C, 14), TILE_OPERANDS(C, 15)
#define OPERANDS_8(C) OPERANDS_7(C), TILE_OPERANDS(C, 16), TILE_OPERANDS(C, 17)
#define OPERANDS_9(C) OPERANDS_8(C), TILE_OPERANDS(C, 18), TILE_OPERANDS(C, 19)
#define OPERANDS_10(C) OPERANDS_9(C), TILE_OPERANDS(C, 20), TILE_OPERANDS(C, 21)
#define OPERANDS_11(C) OPERANDS_10(C), TILE_OPERANDS(C, 22), TILE_OPERANDS(C, 23)
#define OPERANDS_12(C) OPERANDS_11(C), TILE_OPERANDS(C, 24), TILE_OPERANDS(C, 25)

template <class Operand, int TILES>
struct Wgmma;

// One size and type: its tiles, the last pair of them, its shape and types, places of a and b behind the accumulator, and what
// bf16 says of transposition and the signs that integers do not have.
#define WGMMA_TYPE(OPERAND, SUM, C, TILES, LAST, SHAPE, A, B, TAIL)                                                    \
  template <>                                                                                                          \
  struct Wgmma<OPERAND, TILES> {                                                                                       \
    static __device__ __forceinline__ void step(SUM (&d)[TILES][4], uint64_t a, uint64_t b) {                          \
      asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned." SHAPE " {" NAMES_##LAST     \
                   "}, " A ", " B ", p" TAIL ";\n}\n"                                                                  \
                   : OPERANDS_##LAST(C)                                                                                \
                   : "l"(a), "l"(b));                                                                                  \
    }                                                                                                                  \
  };

#define WGMMA_SIZE(TILES, COLUMNS, LAST, A, B)                                                                         \
  WGMMA_TYPE(bf16, float, "+f", TILES, LAST, "m64n" COLUMNS "k16.f32.bf16.bf16", A, B, ", 1, 1, 0, 0")                 \
  WGMMA_TYPE(__nv_fp8_e4m3, float, "+f", TILES, LAST, "m64n" COLUMNS "k32.f32.e4m3.e4m3", A, B, ", 1, 1")              \
  WGMMA_TYPE(int8_t, int32_t, "+r", TILES, LAST, "m64n" COLUMNS "k32.s32.s8.s8", A, B, "")

WGMMA_SIZE(8, "64", 3, "%32", "%33")
WGMMA_SIZE(10, "80", 4, "%40", "%41")
WGMMA_SIZE(12, "96", 5, "%48", "%49")
WGMMA_SIZE(14, "112", 6, "%56", "%57")
WGMMA_SIZE(16, "128", 7, "%64", "%65")
WGMMA_SIZE(18, "144", 8, "%72", "%73")
WGMMA_SIZE(20, "160", 9, "%80", "%81")
WGMMA_SIZE(22, "176", 10, "%88", "%89")
WGMMA_SIZE(24, "192", 11, "%96", "%97")
WGMMA_SIZE(26, "208", 12, "%104", "%105")

template <class Operand, class Sum, int TILES>
__device__ __forceinline__ void wgmma_step(Sum (&d)[TILES][4], uint64_t a, uint64_t b) {
  Wgmma<Operand, TILES>::step(d, a, b);
}
