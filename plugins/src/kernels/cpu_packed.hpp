/// \file cpu_packed.hpp
/// \brief The CPU kernel for planar images of many channels: vectorized over channels, for a box of output pixels.
///
/// A planar kernel spends most of its time on joining pixels that lie anywhere in a channel. Here the part of the image
/// that a box of output pixels reads, its window, is copied for a group of channels so that the channels of a pixel are
/// adjacent. Every sample is then a sum of whole vectors, and blocks of samples are transposed when they are written.
/// Windows that would not fit into the L2 cache, or that are many times larger than their box, are not worth a copy.
#ifndef STN_KERNELS_CPU_PACKED_HPP_
#define STN_KERNELS_CPU_PACKED_HPP_

#include "kernels/cpu.hpp"
#include "kernels/cpu_grid.hpp"
#include "kernels/cpu_planar.hpp"
#include "kernels/cpu_points.hpp"
#include "kernels/cpu_taps.hpp"
#include "kernels/lanes_avx2.hpp"
#include "kernels/packing.hpp"

namespace stn {

namespace {

/// The pixels and weights of one axis: two for linear.
template <class L>
struct LinearAxis {
  static constexpr int kTaps = 2;
  using F = typename L::F;
  using I = typename L::I;
  using M = typename L::M;
  I index[2];
  F weight[2];
  M valid[2];

  STN_HD LinearAxis(F at, const Axis& axis, int padding) {
    const LinearTap<L> tap = linear_tap<L>(at, axis, padding);
    index[0] = tap.low;
    index[1] = tap.low + I(1);
    weight[0] = tap.weight_low;
    weight[1] = tap.weight_high;
    valid[0] = tap.valid_low;
    valid[1] = tap.valid_high;
  }

  /// The first and the last pixel, which may lie one pixel outside of the image, and whether any is in the image.
  STN_HD M span(const Axis& axis, I* first, I* last) const {
    *first = index[0];
    *last = index[1];
    return vinside(index[1], axis.size + 1);
  }
};

/// Likewise, four for cubic.
template <class L>
struct CubicAxis : CubicTap<L> {
  static constexpr int kTaps = 4;
  using I = typename L::I;
  STN_HD CubicAxis(typename L::F at, const Axis& axis, int padding) : CubicTap<L>(cubic_tap<L>(at, axis, padding)) {}

  STN_HD typename L::M span(const Axis&, I* first, I* last) const {
    *first = vmin(vmin(this->index[0], this->index[1]), vmin(this->index[2], this->index[3]));
    *last = vmax(vmax(this->index[0], this->index[1]), vmax(this->index[2], this->index[3]));
    return vor(vor(this->valid[0], this->valid[1]), vor(this->valid[2], this->valid[3]));
  }
};

/// A box of output pixels as runs of consecutive pixels.
struct Runs {
  int32_t rows, planes;  ///< runs per plane, and planes
  int64_t pixels;        ///< pixels per run
  int64_t first, row, plane;

  Runs(const Warp& w, const CpuBox& box) : rows(box.size[1]), planes(box.size[2]), pixels(box.size[0]) {
    row = w.out_size[0];
    plane = row * w.out_size[1];
    first = box.first[0] + box.first[1] * row + box.first[2] * plane;
    if (pixels != row) return;
    pixels *= rows;  // whole rows are consecutive
    rows = 1;
    if (pixels != plane) return;
    pixels *= planes;
    planes = 1;
  }

  /// Calls `visit(first pixel, index of the run's first point)` for each run.
  template <class Visit>
  STN_HD void each(Visit visit) const {
    const int64_t points = (pixels + kWidest - 1) / kWidest * kWidest;
    int64_t point = 0;
    for (int32_t z = 0; z < planes; ++z) {
      for (int32_t y = 0; y < rows; ++y, point += points) visit(first + z * plane + y * row, point);
    }
  }
};

/// The part of an image that a box of output pixels reads.
struct Window {
  int32_t first[3], size[3];
  int64_t pixels;   ///< 0: the box lies outside of the image
  int64_t samples;  ///< those in vectors that read any pixel
};

/// Stores a box's sampling points, in pixels, and finds its window.
template <class L, template <class> class AxisTaps, int Rank>
Window find_window(const Warp& warp, int64_t sample, const Runs& runs, Points* points, Packing* packing) {
  const Warp w = warp;  // stores cannot alias a local copy
  using I = typename L::I;
  using M = typename L::M;
  I low[Rank], high[Rank];
  int64_t samples = 0;
  for (int d = 0; d < Rank; ++d) {
    low[d] = I(w.axis[d].size);
    high[d] = I(-1);
  }
  runs.each([&](int64_t first, int64_t point) {
    if (from_lattice(w.kind)) find_points<L, Rank>(w, {sample, first, runs.pixels, 0, 0}, points);
    GridWalk<L, Rank> walk(w, sample, first, points);
    for (int64_t v = 0; v < runs.pixels; v += L::width) {
      const int count = runs.pixels - v < L::width ? static_cast<int>(runs.pixels - v) : L::width;
      const Point<L> at = walk.next(count);
      M reads = vinside(L::iota(), count);  // whether a lane reads a pixel
      I first_read[Rank], last_read[Rank];
#pragma GCC unroll 3
      for (int d = 0; d < Rank; ++d) {
        const typename L::F x = unnormalize(at.at[d], w.axis[d]);
        float* stored = packing->at[d] + point + v;
        L::store_aligned(stored, x);
        for (int lane = count; lane < L::width; ++lane) stored[lane] = stored[0];  // within the window too
        const AxisTaps<L> taps(x, w.axis[d], w.padding);
        reads = vand(reads, taps.span(w.axis[d], &first_read[d], &last_read[d]));
      }
      samples += vany(reads) ? L::width : 0;
#pragma GCC unroll 3
      for (int d = 0; d < Rank; ++d) {
        low[d] = vmin(low[d], vselect(reads, first_read[d], low[d]));
        high[d] = vmax(high[d], vselect(reads, last_read[d], high[d]));
      }
    }
  });
  Window window{{0, 0, 0}, {1, 1, 1}, 1, samples};
  for (int d = 0; d < Rank; ++d) {
    alignas(64) int32_t lows[L::width], highs[L::width];
    L::store_aligned(lows, low[d]);
    L::store_aligned(highs, high[d]);
    int32_t from = lows[0], to = highs[0];
    for (int lane = 1; lane < L::width; ++lane) {
      from = lows[lane] < from ? lows[lane] : from;
      to = highs[lane] > to ? highs[lane] : to;
    }
    from = from > 0 ? from : 0;
    to = to < w.axis[d].size ? to : w.axis[d].size - 1;
    if (to < from) return {{0, 0, 0}, {0, 0, 0}, 0, 0};
    window.first[d] = from;
    window.size[d] = to - from + 1;
    // Three sizes of at most 2^30: the product is stopped where it is too large already.
    window.pixels = window.pixels > kWindowPixels ? window.pixels : window.pixels * window.size[d];
  }
  return window;
}

/// Copies the window of up to kGroup channels from `image` on.
template <class T>
void pack_window(const Warp& w, const T* image, int channels, const Window& window, float* to) {
  // Channels whose size is a multiple of 4096 bytes are in the same sets of the L1 cache. So only eight are read at a
  // time, for as many pixels as their cache lines stay there.
  using L = Avx2Lanes;
  constexpr int kTogether = 64;
  // Missing channels are copies of the last one; their samples are not written.
  const T* from[kGroup];
  for (int c = 0; c < kGroup; ++c) from[c] = image + (c < channels ? c : channels - 1) * w.in_channel_stride;
  // Rows of the whole width are consecutive.
  const bool whole = window.size[0] == w.axis[0].size;
  const int32_t columns = whole ? window.size[0] * window.size[1] : window.size[0], rows = whole ? 1 : window.size[1];
  for (int32_t z = 0; z < window.size[2]; ++z) {
    for (int32_t y = 0; y < rows; ++y, to += columns * kGroup) {
      const int64_t start = window.first[0] + (window.first[1] + y) * w.in_row + (window.first[2] + z) * w.in_plane;
      for (int32_t first = 0; first < columns; first += kTogether) {
        const int32_t last = columns - first < kTogether ? columns : first + kTogether;
        for (int part = 0; part < channels; part += L::width) {
          for (int32_t x = first; x < last; x += L::width) {
            const int count = last - x < L::width ? last - x : L::width;
            L::F block[L::width];
            for (int c = 0; c < L::width; ++c) {
              // A row of a window is too short for the processor to fetch the next one in time.
              if (!whole) __builtin_prefetch(from[part + c] + start + x + w.in_row);
              block[c] = L::load_values(from[part + c] + start + x, count);
            }
            L::transpose(block);
            // A last block writes over the start of the next row, which comes after it.
            for (int i = 0; i < L::width; ++i) L::store_aligned(to + (x + i) * kGroup + part, block[i]);
          }
        }
      }
    }
  }
}

/// The pixels of a window that one vector of samples reads, and their weights.
template <class L, template <class> class AxisTaps, int Rank>
struct PackedTaps {
  static constexpr int kAxis = AxisTaps<L>::kTaps;
  static constexpr int kTaps = kAxis * kAxis * (Rank == 3 ? kAxis : 1);
  using F = typename L::F;
  using I = typename L::I;
  using M = typename L::M;

  alignas(64) int32_t at[kTaps][L::width];  ///< offsets of pixels; 0 is the pixel of zeros
  alignas(64) float weight[kTaps][L::width];
  Coverage coverage;  ///< inside: all pixels are in the image, at fixed offsets from the first

  STN_HD void find(const Warp& w, const Warp& window, const int32_t* first, const Packing& packing, int64_t point) {
    const AxisTaps<L> x(L::load_aligned(packing.at[0] + point), w.axis[0], w.padding);
    const AxisTaps<L> y(L::load_aligned(packing.at[1] + point), w.axis[1], w.padding);
    bool inside = adjacent(x) && adjacent(y);
    M reads = vand(any(x), any(y));
    // Offsets, after the pixel of zeros.
    I column[kAxis];
    for (int c = 0; c < kAxis; ++c) {
      column[c] = x.index[c] - I(first[0] - 1);
      for (int channels = 1; channels < kGroup; channels *= 2) column[c] = column[c] + column[c];
    }
    if constexpr (Rank == 3) {
      const AxisTaps<L> z(L::load_aligned(packing.at[2] + point), w.axis[2], w.padding);
      inside = inside && adjacent(z);
      reads = vand(reads, any(z));
      for (int k = 0; k < kAxis; ++k) {
        set_plane(window, first, x, y, column, z.index[k] - I(first[2]), z.weight[k], z.valid[k], k * kAxis * kAxis);
      }
    } else {
      set_plane(window, first, x, y, column, I(0), F(1.0f), vequal(I(0), I(0)), 0);
    }
    coverage = inside ? Coverage::kInside : vany(reads) ? Coverage::kPartly : Coverage::kOutside;
  }

 private:
  /// Every tap counts: coordinates of millions of pixels are so coarse that reflection repeats one and omits another.
  static STN_HD bool adjacent(const AxisTaps<L>& taps) {
    M adjoin = taps.valid[0];
    for (int t = 1; t < kAxis; ++t) {
      adjoin = vand(adjoin, vand(taps.valid[t], vequal(taps.index[0] + I(t), taps.index[t])));
    }
    return vall(adjoin);
  }

  static STN_HD M any(const AxisTaps<L>& taps) {
    M valid = taps.valid[0];
    for (int t = 1; t < kAxis; ++t) valid = vor(valid, taps.valid[t]);
    return valid;
  }

  STN_HD void set_plane(const Warp& window, const int32_t* first, const AxisTaps<L>& x, const AxisTaps<L>& y,
                        const I* column, I z, F of_plane, M valid_plane, int t) {
    for (int r = 0; r < kAxis; ++r) {
      const M valid_row = vand(y.valid[r], valid_plane);
      const F of_row = Rank == 3 ? y.weight[r] * of_plane : y.weight[r];
      for (int c = 0; c < kAxis; ++c, ++t) {
        const I offset = L::template offset<Rank>(column[c], y.index[r] - I(first[1]), z, window);
        L::store_aligned(at[t], vselect(vand(x.valid[c], valid_row), offset, I(0)));
        L::store_aligned(weight[t], x.weight[c] * of_row);
      }
    }
  }
};

/// Samples `count` pixels, at most a vector of them, in a vector of channels, of which `channels` are written.
template <class L, bool Inside, class Taps, class T>
STN_HD void blend_packed(const Warp& w, const int64_t* further, const Taps& taps, const float* pixels, int channels,
                         T* to, int count) {
  using F = typename L::F;
  F block[L::width];
#pragma GCC unroll 16
  for (int i = 0; i < L::width; ++i) {
    const float* first = pixels + taps.at[0][i];
    F sum = L::load_aligned(first) * F(taps.weight[0][i]);
#pragma GCC unroll 16
    for (int t = 1; t < Taps::kTaps; ++t) {
      const float* from = Inside ? first + further[t] : pixels + taps.at[t][i];
      sum = vfma(L::load_aligned(from), F(taps.weight[t][i]), sum);
    }
    block[i] = sum;
  }
  L::transpose(block);
  if (channels == L::width && count == L::width) {
    for (int c = 0; c < L::width; ++c, to += w.out_channel_stride) L::store(to, block[c], L::width);
  } else {
    for (int c = 0; c < channels; ++c, to += w.out_channel_stride) L::store(to, block[c], count);
  }
}

/// Samples a box in up to kGroup channels.
template <class L, template <class> class AxisTaps, int Rank, class T>
void packed_group(const Warp& warp, const Runs& runs, const Window& window, const T* image, int channels, T* output,
                  Packing* packing) {
  using Taps = PackedTaps<L, AxisTaps, Rank>;
  const Warp w = warp;  // stores cannot alias a local copy
  pack_window(w, image, channels, window, packing->pixels + kGroup);
  Warp strides = w;
  strides.in_row = int64_t{kGroup} * window.size[0];
  strides.in_plane = strides.in_row * window.size[1];
  int64_t further[Taps::kTaps];  // from a sample's first pixel to its other ones
  for (int t = 0; t < Taps::kTaps; ++t) {
    const int row = t / Taps::kAxis;
    further[t] = t % Taps::kAxis * kGroup + row % Taps::kAxis * strides.in_row + row / Taps::kAxis * strides.in_plane;
  }
  constexpr int kVectors = 64 / L::width;
  Taps taps[kVectors];
  runs.each([&](int64_t first, int64_t point) {
    for (int64_t start = 0; start < runs.pixels; start += kVectors * L::width) {
      const int64_t rest = runs.pixels - start;
      const int pixels = rest < kVectors * L::width ? static_cast<int>(rest) : kVectors * L::width;
      const int vectors = (pixels + L::width - 1) / L::width;
      for (int v = 0; v < vectors; ++v) taps[v].find(w, strides, window.first, *packing, point + start + v * L::width);
      for (int part = 0; part < channels; part += L::width) {
        T* to = output + part * w.out_channel_stride + first + start;
        for (int v = 0; v < vectors; ++v, to += L::width) {
          const int count = lanes_used<L>(pixels, v);
          const int used = channels - part < L::width ? channels - part : L::width;
          if (taps[v].coverage == Coverage::kInside) {
            blend_packed<L, true>(w, further, taps[v], packing->pixels + part, used, to, count);
          } else if (taps[v].coverage == Coverage::kPartly) {
            blend_packed<L, false>(w, further, taps[v], packing->pixels + part, used, to, count);
          } else {
            for (int c = 0; c < used; ++c) L::store(to + c * w.out_channel_stride, typename L::F(0.0f), count);
          }
        }
      }
    }
  });
}

/// Whether a window is worth a copy: a planar kernel takes the time of a few copies per sample.
template <int Rank>
STN_HD bool worth_packing(const Window& window) {
  return window.pixels <= kWindowPixels && window.pixels <= (Rank == 3 ? 8 : 3) * window.samples;
}

/// Writes zeros to a box.
template <class T>
void clear_box(const Warp& w, const CpuBox& box, const Runs& runs, T* output) {
  for (int64_t c = 0; c < box.channels; ++c) {
    T* channel = output + (box.first_channel + c) * w.out_channel_stride;
    runs.each([&](int64_t first, int64_t) {
      memset(static_cast<void*>(channel + first), 0, static_cast<size_t>(runs.pixels) * sizeof(T));
    });
  }
}

/// Samples a box with a planar kernel, which `plan` is for.
template <CpuRun Planar>
void planar_box(CpuPlan* plan, const CpuBox& box, const Runs& runs, int64_t first_channel, int64_t channels) {
  runs.each([&](int64_t first, int64_t) {
    const CpuUnit unit{box.sample, first, runs.pixels, first_channel, channels};
    plan->given = &unit;
    Planar(*plan, 0, 1);
  });
}

template <class L, template <class> class AxisTaps, class Taps, class T>
void packed_run(const CpuPlan& plan, int64_t begin, int64_t end) {
  constexpr int Rank = Taps::kRank;
  const Warp w = plan.warp;
  Packing* packing = packing_of_thread();
  if (packing != nullptr) {
    for (int c = 0; c < kGroup; ++c) packing->pixels[c] = 0.0f;
  }
  CpuPlan planar{};
  planar.warp = w;
  Points points;
  Window window{};
  int64_t known = -1;  // the box of `window`
  for (int64_t index = begin; index < end; ++index) {
    const CpuBox box = box_of(plan, index);
    const Runs runs(w, box);
    if (packing != nullptr && known != index / plan.channel_chunks) {
      window = find_window<L, AxisTaps, Rank>(w, box.sample, runs, &points, packing);
      known = index / plan.channel_chunks;
    }
    if (packing == nullptr || !worth_packing<Rank>(window)) {
      planar_box<planar_run<L, Taps, T>>(&planar, box, runs, box.first_channel, box.channels);
      continue;
    }
    const T* input = static_cast<const T*>(w.input) + box.sample * w.in_batch_stride;
    T* output = static_cast<T*>(w.output) + box.sample * w.out_batch_stride;
    if (window.pixels == 0) {
      clear_box(w, box, runs, output);
      continue;
    }
    const int64_t last = box.first_channel + box.channels;
    for (int64_t c = box.first_channel; c < last; c += kGroup) {
      const int channels = static_cast<int>(last - c < kGroup ? last - c : kGroup);
      if (channels < kFewestChannels) {
        planar_box<planar_run<L, Taps, T>>(&planar, box, runs, c, channels);
      } else if (channels <= kGroup / 2) {
        packed_group<Avx2Lanes, AxisTaps, Rank>(w, runs, window, input + c * w.in_channel_stride, channels,
                                                output + c * w.out_channel_stride, packing);
      } else {
        packed_group<L, AxisTaps, Rank>(w, runs, window, input + c * w.in_channel_stride, channels,
                                        output + c * w.out_channel_stride, packing);
      }
    }
  }
}

template <class L, class T>
CpuRun packed_kernel_of(const Warp& w) {
  if (w.mode == STN_BICUBIC) return packed_run<L, CubicAxis, Cubic<L>, T>;
  return w.rank == 2 ? packed_run<L, LinearAxis, Linear<L, 2>, T> : packed_run<L, LinearAxis, Linear<L, 3>, T>;
}

/// The packed kernel of lane type L for a warp.
template <class L>
CpuRun packed_kernel(const Warp& w) {
  switch (w.dtype) {
    case STN_FP32:
      return packed_kernel_of<L, float>(w);
    case STN_FP16:
      return packed_kernel_of<L, Half>(w);
    default:
      return packed_kernel_of<L, BFloat>(w);
  }
}

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CPU_PACKED_HPP_
