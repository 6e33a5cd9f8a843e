#include "kernels/cpu.hpp"

#include <cstdlib>
#include <cstring>
#include <new>

#include "kernels/cpu_points.hpp"

namespace stn {
namespace {

enum Isa { kPlain, kAvx2, kAvx512 };

Isa detect() {
#ifdef STN_HAVE_X86_SIMD
  const char* limit = std::getenv("STN_CPU_ISA");  // for tests and benchmarks: plain, avx2 or avx512
  const bool allow_avx2 = limit == nullptr || std::strcmp(limit, "plain") != 0;
  const bool allow_avx512 = allow_avx2 && (limit == nullptr || std::strcmp(limit, "avx2") != 0);
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && allow_avx512) return kAvx512;
  if (avx2 && allow_avx2) return kAvx2;
#endif
  return kPlain;
}

Isa isa() {
  static const Isa found = detect();
  return found;
}

CpuRun kernel_for(const Warp& warp) {
  CpuRun run = nullptr;
#ifdef STN_HAVE_X86_SIMD
  if (isa() == kAvx512) run = avx512_kernel(warp);
  if (isa() == kAvx2) run = avx2_kernel(warp);
#endif
  return run != nullptr ? run : plain_kernel(warp);
}

int64_t divide_up(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/// Extends the range at `place` to a lattice point.
void extend(int32_t* bands, int64_t place, int32_t point) {
  if (bands[place + 1] == 0 || point < bands[place]) bands[place] = point;
  if (point + 1 > bands[place + 1]) bands[place + 1] = point + 1;
}

/// Where a tensor product's matrices are not zero; NULL if there is no memory, and everything is then taken as not
/// zero.
std::unique_ptr<int32_t[]> find_bands(const Warp& w) {
  const Bands places(w);
  std::unique_ptr<int32_t[]> found(new (std::nothrow) int32_t[static_cast<size_t>(places.count())]());
  if (found == nullptr) return found;
  for (int32_t j = 0; j < w.lattice[0]; ++j) {
    const float* column = w.lattice_axes[0] + int64_t{j} * w.out_size[0];
    for (int32_t x = 0; x < w.out_size[0]; ++x) {
      if (column[x] != 0.0f) extend(found.get(), places.of_block(x / kBandPixels), j);
    }
  }
  for (int axis = 1; axis < w.rank; ++axis) {
    for (int32_t place = 0; place < w.out_size[axis]; ++place) {
      const float* row = w.lattice_axes[axis] + int64_t{place} * w.lattice[axis];
      for (int32_t i = 0; i < w.lattice[axis]; ++i) {
        if (row[i] != 0.0f) extend(found.get(), axis == 1 ? places.of_row(place) : places.of_plane(place), i);
      }
    }
  }
  return found;
}

}  // namespace

const char* cpu_isa() {
  switch (isa()) {
    case kAvx512:
      return "avx512";
    case kAvx2:
      return "avx2";
    default:
      return "plain";
  }
}

CpuPlan plan_cpu(const Warp& warp) {
  // The minimum work of a task, in pixels times channels; a smaller task costs more than it saves.
  constexpr int64_t kTaskWork = 16384;
  // With fewer units than this, channels are split into chunks, so that no threads are idle.
  constexpr int64_t kEnoughUnits = 64;

  CpuPlan plan;
  plan.warp = warp;
  if (warp.kind == STN_TENSOR_PRODUCT && warp.batch > 0 && warp.channels > 0 && warp.pixels > 0) {
    plan.bands = find_bands(warp);
    plan.warp.bands = plan.bands.get();
  }
  plan.run = kernel_for(warp);
  plan.tile = warp.channels > 8 ? kBlockPixels : kTilePixels;
  plan.tiles = divide_up(warp.pixels, plan.tile);
  const int64_t cuts = warp.batch * plan.tiles;
  plan.channel_chunk = warp.channels > 0 ? warp.channels : 1;
  if (cuts > 0 && cuts < kEnoughUnits && warp.channels > 16) {
    plan.channel_chunk = divide_up(warp.channels, divide_up(kEnoughUnits, cuts));
    if (plan.channel_chunk < 16) plan.channel_chunk = 16;
  }
  plan.channel_chunks = divide_up(warp.channels, plan.channel_chunk);
  plan.units = cuts * plan.channel_chunks;
  const int64_t pixels = warp.pixels < plan.tile ? warp.pixels : plan.tile;
  const int64_t work = pixels * plan.channel_chunk;
  plan.grain = work > 0 ? divide_up(kTaskWork, work) : 1;
  return plan;
}

}  // namespace stn
