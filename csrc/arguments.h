// The arguments of the operations from Python: tensors, and the tuples of
// mam_kernels/_core/call.py.
//
// Python checks them first, by name (mam_kernels/_core/arguments.py). Type, device and layout are
// looked at once more, since kernels follow an address whatever it leads to. Included by
// bindings.cpp alone.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "mam/ops.h"
#include "mam/streams.h"
#include "tensors.h"

namespace mam {
namespace python {

inline Flags flags_of(py::handle object) {
  if (object.is_none()) return {};
  const Tensor tensor = read(object);
  if (!holds<uint8_t>(tensor) || tensor.dims != 2) refuse(object, "flags (rows, positions)");
  return {tensor.at<uint8_t>(), tensor.strides[0], tensor.strides[1]};
}

inline Values dense_values(py::handle object) {
  const Tensor tensor = read(object);
  if (tensor.dims != 2) refuse(object, "values (rows, positions)");
  return {tensor.at<void>(),
          float_type(tensor, object),
          tensor.shape[0],
          tensor.shape[1],
          tensor.strides[0],
          tensor.strides[1],
          nullptr,
          nullptr,
          false};
}

// Queries (latents, heads, width), which the batch shares, or tokens (batch, positions, heads,
// width); of None, without address.
inline Tokens tokens_of(py::handle object) {
  if (object.is_none()) return {};
  const Tensor tensor = read(object);
  if (tensor.dims != 3 && tensor.dims != 4) refuse(object, "tokens of three or four dimensions");
  const int first = tensor.dims - 3;
  const int64_t *const shape = tensor.shape + first, *const strides = tensor.strides + first;
  if (shape[2] > 1 && strides[2] != 1) refuse(object, "tokens that are dense in their width");
  return {tensor.at<void>(),
          float_type(tensor, object),
          first ? tensor.shape[0] : 1,
          shape[0],
          shape[1],
          shape[2],
          first ? tensor.strides[0] : 0,
          strides[0],
          strides[1]};
}

// --- The tuples, by the order of their fields ---

template <Py_ssize_t Fields>
class Tuple {
 public:
  explicit Tuple(py::handle object) : items_(object.ptr()) {
    if (!PyTuple_Check(items_) || PyTuple_GET_SIZE(items_) != Fields)
      refuse(object, "a tuple of arguments");
  }
  py::handle operator[](Py_ssize_t index) const { return PyTuple_GET_ITEM(items_, index); }
  template <typename T>
  T number(Py_ssize_t index) const {
    return (*this)[index].template cast<T>();
  }

 private:
  PyObject* items_;
};

// Cells, but for their flags, or a dense tensor (rows, positions).
inline Values values_of(py::handle object) {
  if (!PyTuple_Check(object.ptr())) return dense_values(object);
  const Tuple<5> cells(object);
  const py::handle stored = cells[0], crow = cells[1], col = cells[2];
  if (crow.is_none()) return dense_values(stored);
  const Tensor offsets = read(crow), columns = read(col), entries = read(stored);
  const bool index64 = holds<int64_t>(offsets);
  const bool indices =
      index64 ? holds<int64_t>(columns) : holds<int32_t>(offsets) && holds<int32_t>(columns);
  if (!indices || elements(offsets) < 1 || elements(columns) != elements(entries) ||
      !is_contiguous(offsets) || !is_contiguous(columns) || !is_contiguous(entries))
    refuse(crow, "the contiguous parts of a CSR matrix");
  return {entries.at<void>(),
          float_type(entries, stored),
          elements(offsets) - 1,
          cells.number<int64_t>(4),
          0,
          0,
          offsets.at<void>(),
          columns.at<void>(),
          index64,
          elements(entries)};
}

// Choice, where null flags are those of the valid positions.
struct Choice {
  Flags maskable;
  const int32_t* num_masked;
  double mask_ratio;
  const int64_t* latents;
  int64_t num_chosen;
  const int32_t* num_zeros;
  double zero_ratio;

  const Flags& maskable_of(const Flags& valid) const { return maskable.data ? maskable : valid; }
};

inline Choice choice_of(py::handle object) {
  const Tuple<7> choice(object);
  const Maybe<int64_t> latents(choice[3]);
  return {flags_of(choice[0]),
          Maybe<int32_t>(choice[1]).at,
          choice.number<double>(2),
          latents.at,
          choice[3].is_none() ? choice.number<int64_t>(4) : latents.size,
          Maybe<int32_t>(choice[5]).at,
          choice.number<double>(6)};
}

// A word on the library's device goes by its address, one on the host by its value.
inline void read_word(py::handle object, uint64_t* word, const int64_t** address) {
  *address = nullptr;
  if (PyLong_Check(object.ptr())) {
    *word = static_cast<uint64_t>(object.cast<int64_t>());
    return;
  }
  const Tensor tensor = read_anywhere(object);
  if (!holds<int64_t>(tensor) || elements(tensor) != 1) refuse(object, "one word of int64");
  *address = is_here(tensor) ? tensor.at<int64_t>() : nullptr;
  if (*address) return;
  if (tensor.device_type != kOnHost) refuse(object, "a word");
  *word = static_cast<uint64_t>(*tensor.at<int64_t>());
}

// Draw, of positions.
inline Draw draw_of(py::handle object) {
  const Tuple<3> words(object);
  Draw draw{};
  uint64_t step = 0;
  read_word(words[0], &draw.seed, &draw.seed_ptr);
  read_word(words[1], &step, &draw.step_ptr);
  draw.step = static_cast<uint32_t>(step);
  draw.sample_ids = Maybe<int64_t>(words[2]).at;
  draw.stream = kStreamPositions;
  return draw;
}

inline Weighting weighting_of(py::handle object) {
  const Tuple<2> weighting(object);
  return {weighting.number<float>(0), weighting.number<float>(1)};
}

inline Moments moments_of(py::handle object) {
  const Tuple<3> moments(object);
  return {Data<float>(moments[0]).at, Data<float>(moments[1]).at, Data<float>(moments[2]).at};
}

// Parameters, or their gradients, as addresses in the order of the fields; sizes of the latents.
struct Parameters {
  float* at[7];
  int64_t num_latents, width;
};

inline Parameters parameters_of(py::handle object) {
  const Tuple<7> fields(object);
  Parameters parameters;
  for (int i = 0; i < 7; ++i) parameters.at[i] = Data<float>(fields[i]).at;
  const Tensor latents = read(fields[0]);
  if (latents.dims != 2) refuse(fields[0], "latents (N, Dz)");
  parameters.num_latents = latents.shape[0];
  parameters.width = latents.shape[1];
  return parameters;
}

// The stream of a GPU, and threads of the CPU.
inline Launch launch_of(py::handle object) {
  const Tuple<2> launch(object);
  return {launch.number<uint64_t>(0), launch.number<int>(1)};
}

}  // namespace python
}  // namespace mam

// What a function of bindings.cpp takes becomes what is read from it.
#define MAM_TAKES(Type, read)                      \
  template <>                                      \
  struct pybind11::detail::type_caster<Type> {     \
    PYBIND11_TYPE_CASTER(Type, const_name(#Type)); \
    bool load(handle from, bool) {                 \
      value = read(from);                          \
      return true;                                 \
    }                                              \
  }

MAM_TAKES(mam::Values, mam::python::values_of);
MAM_TAKES(mam::Flags, mam::python::flags_of);
MAM_TAKES(mam::Tokens, mam::python::tokens_of);
MAM_TAKES(mam::Draw, mam::python::draw_of);
MAM_TAKES(mam::Weighting, mam::python::weighting_of);
MAM_TAKES(mam::Moments, mam::python::moments_of);
MAM_TAKES(mam::Launch, mam::python::launch_of);
MAM_TAKES(mam::python::Choice, mam::python::choice_of);
MAM_TAKES(mam::python::Parameters, mam::python::parameters_of);

#undef MAM_TAKES
