/// \file stn.h
/// \brief The C interface of libstn_plugins: one fused spatial transformer, on the CPU and on CUDA.
///
/// A problem describes one warp and points to its arrays. `stn_run_cpu` and `stn_run_cuda` compute it in one pass,
/// without writing the sampling grid to memory. All modes have the semantics of ONNX GridSample, with two additions:
/// NaN or infinite coordinates sample outside of the image (zeros: 0; border and reflection: index 0), and coordinates
/// and weights are computed in fp32 for every image type.
#ifndef STN_STN_H_
#define STN_STN_H_

#include <stdint.h>

#if defined(_WIN32)
#define STN_API
#else
#define STN_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/// The newest version of `stn::ProjectiveTransformer` that this header describes; every other op has version 1 only.
#ifndef STN_PROJECTIVE_VERSION
#define STN_PROJECTIVE_VERSION 2
#endif

/// Element types of images and of sampling grids.
enum stn_dtype { STN_FP32 = 0, STN_FP16 = 1, STN_BF16 = 2 };

/// How the sampling coordinates are computed.
enum stn_kind {
  STN_AFFINE = 0,      ///< theta [N, D, D+1] times (x, y[, z], 1) at pixel centers
  STN_BASIS = 1,       ///< theta [N, D, K] times basis [K, P]
  STN_PROJECTIVE = 2,  ///< theta [N, D+1, K] times basis [K, P] (or pixel centers: K = D+1), then divided by the last
                       ///< row, which `clamp_w` bounds from below
  STN_GRID = 3,        ///< theta points to the coordinates: [N, P, D] of grid_dtype (GridSample)
  STN_TENSOR_PRODUCT = 4,  ///< theta [N, D, *lattice] contracted with one matrix per axis: `planes`, `rows`, `columns`
  STN_LATTICE = 5          ///< `taps` points of theta [N, D, K] per pixel, at `index`, times the weights in `basis`
};

/// Interpolation; bicubic is 2-D only (A = -0.75).
enum stn_mode { STN_BILINEAR = 0, STN_NEAREST = 1, STN_BICUBIC = 2 };

/// The value of samples outside of the image.
enum stn_padding { STN_ZEROS = 0, STN_BORDER = 1, STN_REFLECTION = 2 };

/// Memory layout of an image batch: N, C, (D,) H, W or N, (D,) H, W, C.
enum stn_layout { STN_PLANAR = 0, STN_CHANNELS_LAST = 1 };

/// Return values of the functions below; `stn_status_text` describes them.
enum stn_status {
  STN_OK = 0,
  STN_ERROR_STRUCT_SIZE = 1,  ///< the caller was compiled with another version of stn_problem
  STN_ERROR_VALUE = 2,        ///< an enum value or the rank is unknown, or a combination is not supported
  STN_ERROR_SIZE = 3,         ///< a size is negative or inconsistent with another
  STN_ERROR_OVERFLOW = 4,     ///< an array would have more elements than a 64-bit index can address
  STN_ERROR_POINTER = 5,      ///< a required array is NULL
  STN_ERROR_NO_CUDA = 6,      ///< this library was built without CUDA
  STN_ERROR_CUDA = 7,         ///< CUDA's last error on this thread; STN_LOG=1 also prints each one to stderr
  STN_ERROR_MEMORY = 8,       ///< the CPU kernels could not allocate memory or start threads
  STN_ERROR_POINTS = 9        ///< `points` is not the product of the output's sizes
};

/// One warp of one batch. Zero the struct, set struct_size to sizeof(stn_problem), then set the other fields.
typedef struct stn_problem {
  uint32_t struct_size;
  int32_t rank;           ///< D: 2 or 3 spatial dimensions
  int32_t kind;           ///< stn_kind
  int32_t mode;           ///< stn_mode
  int32_t padding;        ///< stn_padding
  int32_t align_corners;  ///< the sampler's convention: 0 or 1
  int32_t dtype;          ///< stn_dtype of input and output
  int32_t grid_dtype;     ///< stn_dtype of the grid; used for STN_GRID only
  int32_t input_layout;   ///< stn_layout
  int32_t output_layout;  ///< stn_layout
  int64_t batch;          ///< N of the output
  int64_t channels;       ///< C
  int64_t input_size[3];  ///< (D,) H, W: the first `rank` are used
  int64_t output_size[3];
  int64_t basis_rows;         ///< K; D+1 for STN_AFFINE and for STN_PROJECTIVE without a basis, ignored for STN_GRID;
                              ///< prod(lattice) for STN_TENSOR_PRODUCT
  int64_t theta_batch;        ///< batch, or 1: the same theta (or grid) for the whole batch
  int64_t input_batch;        ///< batch, or 1: the same image for every theta
  int64_t channel_pitch_in;   ///< channels-last only: elements from one pixel to the next; 0 = channels
  int64_t channel_pitch_out;  ///< likewise; elements from channels up to the pitch may be overwritten
  int64_t points;             ///< columns of `basis`, or points per sample of the grid: must be prod(output_size)
  const void* input;          ///< [input_batch, C, *input_size] (or channels-last)
  const void* theta;          ///< fp32 [theta_batch, D, K] (projective [theta_batch, D+1, K]); STN_GRID: the grid
  const float* basis;         ///< [K, points]; may be NULL for STN_AFFINE and STN_PROJECTIVE, and `points` then 0;
                              ///< STN_LATTICE: the weights [taps, points]
  void* output;               ///< [batch, C, *output_size] (or channels-last)
  int64_t lattice[3];         ///< STN_TENSOR_PRODUCT: planes (1 for images), rows and columns of theta's lattice
  int64_t taps;               ///< STN_LATTICE: lattice points per pixel, 1 to 64
  const float* planes;        ///< [D_out, lattice[0]]; not read for images
  const float* rows;          ///< [H_out, lattice[1]]
  const float* columns;       ///< [lattice[2], W_out]: transposed, so that pixels of a row are adjacent
  const int32_t* index;       ///< [taps, points]; values outside of 0 .. K-1 read the first or last point
  int32_t clamp_w;            ///< STN_PROJECTIVE: 1 = divide by max(w, w_min), where NaN stays NaN; 0 = by w
  float w_min;                ///< not NaN; read only if clamp_w is 1
  float offset[3];            ///< STN_PROJECTIVE: finite, added to (x, y[, z]) after the division; `rank` are used
} stn_problem;

/// \brief Checks a problem without accessing its arrays.
/// \return STN_OK, or the stn_status of the first error.
///
/// `points` is prod(output_size) wherever there is a basis, a grid or an index to read, and may be 0 elsewhere. A
/// projective problem has one of two forms: a `basis` of any K >= 1 rows, or none, and then K = D+1 and the rows of the
/// basis are the pixel centers and 1. With another K and no basis, the status is STN_ERROR_SIZE, unless the output has
/// no points. `kind` determines K in no other case but STN_AFFINE (D+1) and STN_TENSOR_PRODUCT (prod(lattice)).
STN_API int stn_check(const stn_problem* problem);

/// \brief Runs a problem whose arrays are in host memory, and returns when it is complete.
/// \param problem the problem; it is checked first.
/// \param threads the maximum number of threads; 0 = all processors of the process, 1 = only the calling thread.
/// \return a stn_status.
///
/// Thread-safe.
STN_API int stn_run_cpu(const stn_problem* problem, int threads);

/// \brief Launches a problem whose arrays are in device memory (including theta and basis), and returns immediately.
/// \param problem the problem; it is checked first.
/// \param cuda_stream a cudaStream_t; NULL is the default stream.
/// \return a stn_status.
///
/// Does not allocate or synchronize, so it can be captured in a CUDA graph.
STN_API int stn_run_cuda(const stn_problem* problem, void* cuda_stream);

/// \brief A one-line description of a stn_status. That of STN_ERROR_CUDA is CUDA's text of the last error on the
/// calling thread, valid until the next one.
STN_API const char* stn_status_text(int status);

/// \brief The library's version, such as "1.0.0".
STN_API const char* stn_version(void);

/// \brief The newest version of an op of domain `stn` that the library knows; 0 if it does not know the op.
/// \param name the op's name in ONNX files, such as "ProjectiveTransformer".
STN_API int stn_op_version(const char* name);

/// \brief 1 if the library was built with the CUDA kernels (this machine may still have no GPU), else 0.
STN_API int stn_has_cuda(void);

/// \brief Whether a GPU can run the CUDA kernels: 1, or 0 if there is no such GPU, its driver is too old, or the
/// library was built for other GPUs or without CUDA; `stn_status_text(STN_ERROR_CUDA)` then has the reason.
/// \param device the GPU's index among those that CUDA shows to this process.
///
/// Loads a kernel on the GPU, also during a stream capture. The current device stays the same.
STN_API int stn_cuda_usable(int device);

/// \brief The instruction set that the CPU kernels use on this machine: "avx512", "avx2" or "plain".
STN_API const char* stn_cpu_isa(void);

#ifdef __cplusplus
}
#endif

#endif  // STN_STN_H_
