#include "kernels/cpu.hpp"

#include <cstdlib>
#include <cstring>
#include <new>

#include "kernels/cpu_points.hpp"
#include "kernels/packing.hpp"

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

CpuRun kernel_for(const Warp& warp, [[maybe_unused]] bool packed) {
  CpuRun run = nullptr;
#ifdef STN_HAVE_X86_SIMD
  if (isa() == kAvx512) run = avx512_kernel(warp, packed);
  if (isa() == kAvx2) run = avx2_kernel(warp, packed);
#endif
  return run != nullptr ? run : plain_kernel(warp);
}

int64_t divide_up(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/// Whether the kernel of cpu_packed.hpp runs a warp. It needs vectors, and images that the planar kernel supports too.
bool is_packed(const Warp& w) {
  const bool planar = !w.channels_last && !w.mixed_layouts && w.axis[0].size >= 2;
  const bool narrow = w.in_pixels < (int64_t{1} << 31) && w.pixels < (int64_t{1} << 31);
  // Otherwise a window is nearly always larger than it is worth.
  const bool many = w.channels >= kFewestChannels && w.pixels > 0 && w.pixels >= w.in_pixels / 4;
  return isa() != kPlain && planar && narrow && w.mode != STN_NEAREST && many;
}

/// Boxes of equal parts of an axis of `size` pixels, of at most `most`, in steps of `step` where they are cut.
int32_t part_of(int32_t size, int64_t most, int64_t step) {
  if (size <= most) return size;
  const int64_t parts = divide_up(size, most);
  return static_cast<int32_t>(divide_up(divide_up(size, parts), step) * step);
}

/// Cuts the output into boxes of up to kTilePixels, whose windows are small: nearly square, nearly cubic.
void cut_boxes(const Warp& w, CpuPlan* plan) {
  // Pixels of a box, with the last vector of each of its runs.
  const int64_t enough = w.batch * divide_up(w.channels, kGroup) * w.pixels;  // for many threads
  const int64_t most = enough < 16 * kTilePixels ? kTilePixels / 4 : kTilePixels / 2;
  plan->box[0] = part_of(w.out_size[0], w.rank == 2 ? 64 : 32, kWidest);
  const int64_t width = divide_up(plan->box[0], kWidest) * kWidest;
  plan->box[1] = part_of(w.out_size[1], w.rank == 2 ? most / width : 8, 1);
  const int64_t plane = divide_up(width * plan->box[1], kWidest) * kWidest;
  plan->box[2] = part_of(w.out_size[2], most / plane, 1);
  plan->tiles = 1;
  for (int d = 0; d < 3; ++d) {
    plan->boxes[d] = static_cast<int32_t>(divide_up(w.out_size[d], plan->box[d] > 0 ? plan->box[d] : 1));
    plan->tiles *= plan->boxes[d];
  }
  plan->tile = int64_t{plan->box[0]} * plan->box[1] * plan->box[2];
}

/// Whether one of `count` values, at most kBandPixels, is not zero.
bool any_nonzero(const float* from, int64_t count) {
  uint64_t words[kBandPixels / 2] = {};
  if (count == kBandPixels) {
    std::memcpy(words, from, sizeof words);
  } else {
    std::memcpy(words, from, static_cast<size_t>(count) * sizeof(float));
  }
  uint64_t all = 0;
  for (uint64_t word : words) all |= word;
  return (all & 0x7fffffff7fffffffu) != 0;  // without the signs
}

/// Finds where the matrix of x is not zero, and copies that part, band by band; false if there is no memory.
bool find_bands(const Warp& w, CpuPlan* plan) {
  const int64_t width = w.out_size[0], count = bands_of(width);
  Band* bands = new (std::nothrow) Band[static_cast<size_t>(count)]();
  plan->bands.reset(bands);
  if (bands == nullptr) return false;
  const auto pixels = [width](int64_t b) {
    return width - b * kBandPixels < kBandPixels ? width % kBandPixels : kBandPixels;
  };
  for (int32_t j = 0; j < w.lattice[0]; ++j) {
    const float* row = w.lattice_axes[0] + j * width;
    for (int64_t b = 0; b < count; ++b) {
      if (!any_nonzero(row + b * kBandPixels, pixels(b))) continue;
      if (bands[b].last == 0) bands[b].first = j;
      bands[b].last = j + 1;
    }
  }
  int64_t rows = 0;
  for (int64_t b = 0; b < count; ++b) rows += bands[b].last - bands[b].first;
  float* to = new (std::nothrow) float[static_cast<size_t>(rows * kBandPixels)];
  plan->weights.reset(to);
  if (to == nullptr) return false;
  for (int64_t b = 0; b < count; ++b) {
    bands[b].weights = to;
    const float* from = w.lattice_axes[0] + bands[b].first * width + b * kBandPixels;
    for (int32_t j = bands[b].first; j < bands[b].last; ++j, to += kBandPixels, from += width) {
      std::memcpy(to, from, static_cast<size_t>(pixels(b)) * sizeof(float));
    }
  }
  return true;
}

}  // namespace

Packing* packing_of_thread() {
  static thread_local std::unique_ptr<Packing> packing;
  if (packing == nullptr) packing.reset(new (std::nothrow) Packing);
  return packing.get();
}

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

  CpuPlan plan{};
  plan.warp = warp;
  if (warp.kind == STN_TENSOR_PRODUCT && warp.batch > 0 && warp.channels > 0 && warp.pixels > 0) {
    if (!find_bands(warp, &plan)) return plan;
    plan.warp.bands = plan.bands.get();
  }
  plan.packed = is_packed(warp);
  plan.run = kernel_for(warp, plan.packed);
  if (plan.packed) {
    cut_boxes(warp, &plan);
  } else {
    plan.tile = warp.channels > 8 ? kBlockPixels : kTilePixels;
    // Whole rows, so that each is contracted once.
    const int64_t width = warp.out_size[0];
    if (warp.kind == STN_TENSOR_PRODUCT && width > 0 && width < plan.tile) plan.tile -= plan.tile % width;
    plan.tiles = divide_up(warp.pixels, plan.tile);
  }
  const int64_t cuts = warp.batch * plan.tiles;
  plan.channel_chunk = warp.channels > 0 ? warp.channels : 1;
  if (cuts > 0 && cuts < kEnoughUnits && warp.channels > 16) {
    plan.channel_chunk = divide_up(warp.channels, divide_up(kEnoughUnits, cuts));
    plan.channel_chunk = divide_up(plan.channel_chunk, kGroup) * kGroup;
  }
  plan.channel_chunks = divide_up(warp.channels, plan.channel_chunk);
  plan.units = cuts * plan.channel_chunks;
  const int64_t pixels = warp.pixels < plan.tile ? warp.pixels : plan.tile;
  const int64_t work = pixels * plan.channel_chunk;
  plan.grain = work > 0 ? divide_up(kTaskWork, work) : 1;
  return plan;
}

}  // namespace stn
