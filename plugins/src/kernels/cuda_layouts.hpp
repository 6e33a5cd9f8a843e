/// \file cuda_layouts.hpp
/// \brief The channels of a pixel that one thread computes: reading them at a pixel's neighbors, and writing the
/// result.
///
/// `Planes` are planar channels (or any strides), `Packs` are neighboring channels of a channels-last image, read and
/// written in one access. All reads of a pixel precede its first write.
#ifndef STN_KERNELS_CUDA_LAYOUTS_HPP_
#define STN_KERNELS_CUDA_LAYOUTS_HPP_

#include <cuda_runtime.h>

#include <type_traits>

#include "kernels/cuda_taps.hpp"
#include "kernels/cuda_tiles.hpp"
#include "kernels/numbers.hpp"
#include "kernels/warp.hpp"

namespace stn {
namespace {

/// The same pointer, opaque to the compiler, which then keeps it in a register instead of recomputing it at each use.
template <class T>
__device__ __forceinline__ T* kept(T* pointer) {
#ifdef __CUDA_ARCH__
  asm("" : "+l"(pointer));
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// Reads global memory through the read-only path, so that reads can precede the writes of other channels.
__device__ __forceinline__ float load(const float* from) { return __ldg(from); }
template <class T>
__device__ __forceinline__ float load(const T* from) {
  return to_float(T{__ldg(&from->bits)});
}

// Two neighboring elements in one access.
__device__ __forceinline__ void load_pair(const float* from, float* to) {
  const float2 pair = __ldg(reinterpret_cast<const float2*>(from));
  to[0] = pair.x;
  to[1] = pair.y;
}
template <class T>
__device__ __forceinline__ void load_pair(const T* from, float* to) {
  const uint32_t pair = __ldg(reinterpret_cast<const uint32_t*>(from));
  to[0] = to_float(T{static_cast<uint16_t>(pair & 0xffffu)});
  to[1] = to_float(T{static_cast<uint16_t>(pair >> 16)});
}

/// The four neighbors of a pixel: weights in the order upper left, upper right, lower left, lower right.
template <class Offset>
struct Square {
  Offset at;  ///< the upper left one, in elements
  float weight[4];
  bool valid[4];
};

/// The sample and the first channel of an item.
struct Item {
  int64_t sample;
  int32_t channel;
  int32_t channels;
};

template <class Offset, bool Chunked>
__device__ __forceinline__ Item item_at(const Warp& w, const Tiles& tiles, Offset index) {
  Item item{index, 0, tiles.chunk};
  if (Chunked && tiles.chunks != 1) {
    using Unsigned = std::make_unsigned_t<Offset>;
    const Offset sample = static_cast<Offset>(static_cast<Unsigned>(index) / static_cast<Unsigned>(tiles.chunks));
    item.sample = sample;
    item.channel = static_cast<int32_t>(index - sample * tiles.chunks) * tiles.chunk;
    item.channels = min(tiles.chunk, static_cast<int32_t>(w.channels) - item.channel);
  }
  return item;
}

/// Channels at any stride: `Channels` of them, or those of an item if `Channels` is 0. If `Planar`, the pixels of both
/// images are adjacent.
template <class T, class OffsetType, int Channels, bool Planar>
struct Planes {
  using Offset = OffsetType;
  static_assert(Channels <= 7 && (Channels == 0 || (Planar && sizeof(Offset) == 4)),
                "offsets into channels of fewer than 2^28 pixels fit in 32 bits");

  static constexpr bool kPacked = false, kChunked = Channels == 0, kManySamples = sizeof(Offset) == 4;
  static constexpr bool kSmall = sizeof(Offset) == 4;

  // References, so that strides stay in the constant memory of the launch, which instructions read at no cost.
  const Warp& w;
  const Tiles& tiles;
  const T* in;
  T* out;
  int32_t count;

  /// Elements from one channel, pixel or row of an image to the next.
  __device__ __forceinline__ Offset in_channel() const {
    return kSmall ? static_cast<Offset>(tiles.in_channel) : static_cast<Offset>(w.in_channel_stride);
  }
  __device__ __forceinline__ Offset out_channel() const {
    return kSmall ? static_cast<Offset>(tiles.out_channel) : static_cast<Offset>(w.out_channel_stride);
  }
  __device__ __forceinline__ Offset in_pixel() const { return Planar ? 1 : static_cast<Offset>(w.in_pixel_stride); }
  __device__ __forceinline__ Offset in_row() const {
    return kSmall ? static_cast<Offset>(tiles.in_row) : static_cast<Offset>(w.in_row * w.in_pixel_stride);
  }

  __device__ __forceinline__ Planes(const Warp& w, const Tiles& tiles, const Item& item, int32_t)
      : w(w), tiles(tiles), count(item.channels) {
    const T* input = static_cast<const T*>(w.input) + item.sample * w.in_batch_stride;
    T* output = static_cast<T*>(w.output) + item.sample * w.out_batch_stride;
    if (Channels == 0 && tiles.chunks != 1) {
      input += item.channel * w.in_channel_stride;
      output += item.channel * w.out_channel_stride;
    }
    in = kept(input);
    out = kept(output);
  }

  /// Writes the weighted sums of a pixel's neighbors to element `to`; if `Masked`, only of its valid ones.
  template <bool Masked>
  __device__ __forceinline__ void weigh(const Square<Offset>& at, Offset to) const {
    const auto apply = [&](const T* upper, const T* lower, T* target) {
      const float a = !Masked || at.valid[0] ? load(upper) : 0.0f;
      const float b = !Masked || at.valid[1] ? load(upper + in_pixel()) : 0.0f;
      const float c = !Masked || at.valid[2] ? load(lower) : 0.0f;
      const float d = !Masked || at.valid[3] ? load(lower + in_pixel()) : 0.0f;
      const float top = vfma(b, at.weight[1], a * at.weight[0]);
      from_float(vfma(d, at.weight[3], vfma(c, at.weight[2], top)), target);
    };
    if constexpr (Channels != 0) {
#pragma unroll
      for (int32_t c = 0; c < Channels; ++c) {
        // 32-bit offsets suffice for so few channels. (`from` may be before the image, if masked.)
        const T* from = in + (at.at + c * in_channel());
        apply(from, from + in_row(), out + (to + c * out_channel()));
      }
    } else {
      const T *upper = kept(in + at.at), *lower = kept(in + at.at + in_row());
      T* target = kept(out + to);
#pragma unroll 4
      for (int32_t c = 0; c < count; ++c) {
        apply(upper, lower, target);
        upper += in_channel();
        lower += in_channel();
        target += out_channel();
      }
    }
  }

  /// The same for any taps.
  template <int Count>
  __device__ __forceinline__ void weigh(const Taps<Count, Offset>& taps, Offset to) const {
    const T* from = in;
    T* target = out + to;
#pragma unroll(Channels != 0 ? Channels : Count < 8 ? 4 : 16 / Count)
    for (int32_t c = 0; c < (Channels != 0 ? Channels : count); ++c) {
      float sum = 0.0f;
#pragma unroll
      for (int t = 0; t < Count; ++t) {
        const float value = taps.valid[t] ? load(from + taps.at[t]) : 0.0f;
        sum = Count == 1 ? value : vfma(value, taps.weight[t], sum);
      }
      from_float(sum, target);
      from += in_channel();
      target += out_channel();
    }
  }

  __device__ __forceinline__ void zeros(Offset to) const {
    T* target = out + to;
#pragma unroll(Channels != 0 ? Channels : 4)
    for (int32_t c = 0; c < (Channels != 0 ? Channels : count); ++c) {
      from_float(0.0f, target);
      target += out_channel();
    }
  }
};

/// `Width` channels that are adjacent in memory, as fp32.
template <int Width>
struct Pack {
  float at[Width];
};

template <class T>
__device__ __forceinline__ void load_pack(const T* from, Pack<1>* pack) {
  pack->at[0] = load(from);
}

__device__ __forceinline__ void load_pack(const float* from, Pack<4>* pack) {
  const float4 values = __ldg(reinterpret_cast<const float4*>(from));
  *pack = {{values.x, values.y, values.z, values.w}};
}

template <class T>
__device__ __forceinline__ void load_pack(const T* from, Pack<8>* pack) {
  const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from));
  const uint32_t words[] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pack->at[2 * i] = to_float(T{static_cast<uint16_t>(words[i] & 0xffffu)});
    pack->at[2 * i + 1] = to_float(T{static_cast<uint16_t>(words[i] >> 16)});
  }
}

template <class T>
__device__ __forceinline__ void store_pack(const Pack<1>& pack, T* to) {
  from_float(pack.at[0], to);
}

__device__ __forceinline__ void store_pack(const Pack<4>& pack, float* to) {
  *reinterpret_cast<float4*>(to) = float4{pack.at[0], pack.at[1], pack.at[2], pack.at[3]};
}

template <class T>
__device__ __forceinline__ void store_pack(const Pack<8>& pack, T* to) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = two_of<T>(pack.at[2 * i], pack.at[2 * i + 1]);
  *reinterpret_cast<uint4*>(to) = uint4{words[0], words[1], words[2], words[3]};
}

/// One pack of `Width` channels of a channels-last image of fewer than 2^28 elements.
template <class T, int Width>
struct Packs {
  using Offset = int32_t;
  static constexpr bool kPacked = true, kChunked = false, kManySamples = Width > 1;

  const Tiles& tiles;
  const T* in;
  T* out;

  /// Elements from one pixel or row of the input to the next.
  __device__ __forceinline__ int32_t in_pixel() const { return tiles.in_pixel; }
  __device__ __forceinline__ int32_t in_row() const { return tiles.in_row; }

  __device__ __forceinline__ Packs(const Warp& w, const Tiles& tiles, const Item& item, int32_t pack) : tiles(tiles) {
    in = kept(static_cast<const T*>(w.input) + item.sample * w.in_batch_stride + pack * Width);
    out = kept(static_cast<T*>(w.output) + item.sample * w.out_batch_stride + pack * Width);
  }

  template <bool Masked>
  __device__ __forceinline__ void weigh(const Square<Offset>& at, Offset to) const {
    const T *upper = in + at.at, *lower = upper + in_row();
    const T* from[] = {upper, upper + in_pixel(), lower, lower + in_pixel()};
    weigh_all<4, Masked>(from, at.weight, at.valid, to);
  }

  template <int Count>
  __device__ __forceinline__ void weigh(const Taps<Count, Offset>& taps, Offset to) const {
    const T* from[Count];
#pragma unroll
    for (int t = 0; t < Count; ++t) from[t] = in + taps.at[t];
    weigh_all<Count, true>(from, taps.weight, taps.valid, to);
  }

  __device__ __forceinline__ void zeros(Offset to) const { store_pack(Pack<Width>{}, out + to); }

 private:
  template <int Count, bool Masked>
  __device__ __forceinline__ void weigh_all(const T* const* from, const float* weight, const bool* valid,
                                            Offset to) const {
    Pack<Width> sum{};
    // Four reads at a time: more of them need too many registers.
#pragma unroll
    for (int first = 0; first < Count; first += 4) {
      Pack<Width> value[Count < 4 ? Count : 4];
#pragma unroll
      for (int t = 0; t < (Count < 4 ? Count : 4); ++t) {
        value[t] = Pack<Width>{};
        if (!Masked || valid[first + t]) load_pack(from[first + t], &value[t]);
      }
#pragma unroll
      for (int t = 0; t < (Count < 4 ? Count : 4); ++t) {
#pragma unroll
        for (int c = 0; c < Width; ++c) {
          sum.at[c] = Count == 1 ? value[t].at[c] : vfma(value[t].at[c], weight[first + t], sum.at[c]);
        }
      }
    }
    store_pack(sum, out + to);
  }
};

}  // namespace
}  // namespace stn

#endif  // STN_KERNELS_CUDA_LAYOUTS_HPP_
