// Whether the arguments of a masking step of scalar values, or of its gradient, are as they must
// be: the checks of mam_kernels/ops/value_attention/arguments.py in one look. In Python they take
// longer than the kernels do for a few cells. What does not fit goes to those checks, which convert
// it or refuse it by name. Included by bindings.cpp alone.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>

#include "arguments.h"
#include "tensors.h"

namespace mam {
namespace python {

// Of these sizes, on the device of the data.
inline bool is_like(const Tensor& tensor, std::initializer_list<int64_t> sizes,
                    const Tensor& data) {
  if (tensor.dims != static_cast<int32_t>(sizes.size())) return false;
  const int64_t* have = tensor.shape;
  for (const int64_t size : sizes)
    if (*have++ != size) return false;
  return tensor.device_type == data.device_type && tensor.device_id == data.device_id;
}

// Contiguous, and of type T. None will do where it may be missing.
template <typename T, bool Missing = false>
bool fits(py::handle object, std::initializer_list<int64_t> sizes, const Tensor& data) {
  if (Missing && object.is_none()) return true;
  Tensor tensor;
  return try_read(object, &tensor) && holds<T>(tensor) && is_like(tensor, sizes, data) &&
         is_contiguous(tensor);
}

inline bool flags_fit(py::handle object, int64_t rows, int64_t positions, const Tensor& data) {
  if (object.is_none()) return true;
  Tensor tensor;
  return try_read(object, &tensor) && tensor.code == kBool &&
         is_like(tensor, {rows, positions}, data);
}

// Reads the values and the number of rows.
inline bool cells_fit(const Tuple<5>& cells, Tensor* values, int64_t* rows) {
  const py::handle crow = cells[1], col = cells[2];
  const int64_t positions = cells.number<int64_t>(4);
  if (positions < 0 || positions > INT32_MAX) return false;
  if (!try_read(cells[0], values)) return false;
  if (values->bits != 16 && !holds<float>(*values)) return false;
  if (values->code != kFloat && values->code != kBfloat) return false;
  if (crow.is_none() && col.is_none()) {
    if (values->dims != 2 || values->shape[1] != positions) return false;
    *rows = values->shape[0];
  } else {
    Tensor offsets;
    if (!try_read(crow, &offsets) || offsets.dims != 1 || offsets.shape[0] < 1) return false;
    *rows = offsets.shape[0] - 1;
    if (values->dims != 1 || !is_contiguous(*values)) return false;
    const int64_t entries = values->shape[0];
    const bool int64 =
        fits<int64_t>(crow, {*rows + 1}, *values) && fits<int64_t>(col, {entries}, *values);
    const bool int32 =
        fits<int32_t>(crow, {*rows + 1}, *values) && fits<int32_t>(col, {entries}, *values);
    if (!int64 && !int32) return false;
  }
  return flags_fit(cells[3], *rows, positions, *values);
}

// Reads the number and the width of the latents.
inline bool parameters_fit(const Tuple<7>& parameters, int64_t heads, const Tensor& data,
                           int64_t* num_latents, int64_t* width) {
  Tensor latents;
  if (!try_read(parameters[0], &latents) || latents.dims != 2) return false;
  const int64_t count = *num_latents = latents.shape[0], wide = *width = latents.shape[1];
  return heads >= 1 && wide % heads == 0 && fits<float>(parameters[0], {count, wide}, data) &&
         fits<float>(parameters[1], {3 * wide, wide}, data) &&
         fits<float>(parameters[2], {3 * wide}, data) &&
         fits<float>(parameters[3], {wide, 1}, data) && fits<float>(parameters[4], {wide}, data) &&
         fits<float>(parameters[5], {wide, wide}, data) && fits<float>(parameters[6], {wide}, data);
}

// The latents are to be drawn: given ones are looked at one by one in Python.
inline bool choice_fits(const Tuple<7>& choice, int64_t rows, int64_t positions,
                        int64_t num_latents, const Tensor& data) {
  const double ratio = choice.number<double>(2), zero_ratio = choice.number<double>(6);
  const int64_t num_drawn = choice.number<int64_t>(4);
  return flags_fit(choice[0], rows, positions, data) &&
         fits<int32_t, true>(choice[1], {rows}, data) && ratio >= 0.0 && ratio <= 1.0 &&
         choice[3].is_none() && num_drawn >= 1 && num_drawn <= num_latents &&
         fits<int32_t, true>(choice[5], {rows}, data) && zero_ratio <= 1.0;
}

inline bool word_fits(py::handle object, const Tensor& data) {
  if (PyLong_Check(object.ptr())) return true;
  Tensor word;
  return try_read(object, &word) && holds<int64_t>(word) && word.dims == 0 &&
         (word.device_type == kOnHost || is_like(word, {}, data));
}

inline bool draw_fits(const Tuple<3>& draw, int64_t rows, const Tensor& data) {
  return word_fits(draw[0], data) && word_fits(draw[1], data) &&
         fits<int64_t, true>(draw[2], {rows}, data);
}

// The bounds are those of mam_kernels/_core/arguments.py.
inline bool weighting_fits(const Tuple<2>& weighting) {
  constexpr double kSmallestEps = 0x1p-100, kLargestEps = 1e6, kLargestExponent = 1e30;
  const double eps = weighting.number<double>(0), exponent = weighting.number<double>(1);
  return (eps == 0.0 || eps >= kSmallestEps) && eps <= kLargestEps && exponent > 0.0 &&
         exponent <= kLargestExponent;
}

inline bool step_fits(py::handle cells, py::handle parameters, int64_t heads, py::handle choice,
                      py::handle weighting, py::handle draw) {
  const Tuple<5> of_cells(cells);
  Tensor values;
  int64_t rows, num_latents, width;
  return cells_fit(of_cells, &values, &rows) &&
         parameters_fit(Tuple<7>(parameters), heads, values, &num_latents, &width) &&
         choice_fits(Tuple<7>(choice), rows, of_cells.number<int64_t>(4), num_latents, values) &&
         weighting_fits(Tuple<2>(weighting)) && draw_fits(Tuple<3>(draw), rows, values);
}

inline bool step_backward_fits(py::handle grad_context, py::handle grad_penalty,
                               py::handle parameters, int64_t heads, py::handle state, int64_t rows,
                               int64_t (*state_size)(int64_t, int64_t, int64_t, int64_t)) {
  Tensor data;
  int64_t num_latents, width;
  return rows >= 0 && rows <= INT32_MAX && try_read(state, &data) &&
         parameters_fit(Tuple<7>(parameters), heads, data, &num_latents, &width) &&
         fits<float>(state, {state_size(rows, num_latents, heads, width)}, data) &&
         fits<float, true>(grad_context, {rows, width}, data) &&
         fits<float, true>(grad_penalty, {}, data);
}

}  // namespace python
}  // namespace mam
