// Arguments from Python: tensors, and the tuples of mam_kernels/_core/call.py.
//
// Tensors are read without torch's headers, so that one build serves every torch: torch.Tensor
// offers a table of C functions for this, DLPack's exchange API. The part of its binary interface
// that is used, version 1, is declared here (https://dmlc.github.io/dlpack/latest/c_api.html).
//
// What comes was checked in Python (mam_kernels/_core/arguments.py), by name. Type, device and
// layout are looked at once more, since kernels follow the address whatever it leads to.
// Included by bindings.cpp alone.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "mam/ops.h"
#include "mam/philox.h"

namespace mam {
namespace python {

namespace py = pybind11;

// As DLTensor. Shape and strides are the tensor's own; strides are in elements.
struct Tensor {
  char* data;
  int32_t device_type, device_id;
  int32_t dims;
  uint8_t code, bits;
  uint16_t lanes;
  const int64_t* shape;
  const int64_t* strides;
  uint64_t byte_offset;

  template <typename T>
  T* at() const {
    return reinterpret_cast<T*>(data + byte_offset);
  }
};

// DLDeviceType and DLDataTypeCode.
constexpr int32_t kOnHost = 1, kOnGpu = 2;
constexpr uint8_t kInt = 0, kUnsigned = 1, kFloat = 2, kBfloat = 4, kBool = 6;

// As DLPackExchangeAPI.
struct Exchange {
  uint32_t major, minor;
  const void *older, *allocate, *share, *take;
  int (*read)(void* object, Tensor* tensor);  // 0, or an error of Python is set
};

inline const Exchange* exchange = nullptr;  // of torch.Tensor

// Called once, when the module is imported.
inline void find_exchange() {
  constexpr const char* kName = "__dlpack_c_exchange_api__";
  const py::object type = py::module_::import("torch").attr("Tensor");
  if (!py::hasattr(type, kName))
    throw py::import_error(
        "expected a torch whose tensors offer DLPack's exchange API, as those of 2.11 do");
  exchange = static_cast<const Exchange*>(
      PyCapsule_GetPointer(py::object(type.attr(kName)).ptr(), "dlpack_exchange_api"));
  if (!exchange) throw py::error_already_set();
  if (exchange->major != 1)
    throw py::import_error("expected version 1 of DLPack's exchange API; torch offers " +
                           std::to_string(exchange->major));
}

[[noreturn, gnu::cold, gnu::noinline]] inline void refuse(py::handle got, const char* expected) {
  const auto named = [&](const char* name) {
    return " " + std::string(py::str(py::getattr(got, name, py::str())));
  };
  throw py::type_error("expected " + std::string(expected) + " on " MAM_DEVICE "; got " +
                       std::string(py::str(py::type::handle_of(got).attr("__name__"))) +
                       named("dtype") + named("shape") + named("device"));
}

// --- Tensors ---

constexpr bool kIsHost = std::string_view(MAM_DEVICE) == "cpu";

inline Tensor read_anywhere(py::handle object) {
  Tensor tensor;
  if (object.is_none()) refuse(object, "a tensor");
  if (exchange->read(object.ptr(), &tensor) != 0) throw py::error_already_set();
  return tensor;
}

inline bool is_here(const Tensor& tensor) {
  return tensor.device_type == (kIsHost ? kOnHost : kOnGpu);
}

inline Tensor read(py::handle object) {
  const Tensor tensor = read_anywhere(object);
  if (!is_here(tensor)) refuse(object, "a tensor");
  return tensor;
}

// Whether the elements are of type T: uint8_t for bytes and flags, void for any.
template <typename T>
bool holds(const Tensor& tensor) {
  if constexpr (std::is_void_v<T>) {
    return true;
  } else if constexpr (std::is_same_v<T, uint8_t>) {
    return tensor.bits == 8 && (tensor.code == kBool || tensor.code == kUnsigned);
  } else {
    return tensor.bits == 8 * sizeof(T) &&
           tensor.code == (std::is_floating_point_v<T> ? kFloat : kInt);
  }
}

inline DType float_type(const Tensor& tensor, py::handle object) {
  if (tensor.code == kFloat && tensor.bits == 32) return DType::float32;
  if (tensor.code == kFloat && tensor.bits == 16) return DType::float16;
  if (tensor.code == kBfloat && tensor.bits == 16) return DType::bfloat16;
  refuse(object, "float32, float16 or bfloat16");
}

inline int64_t elements(const Tensor& tensor) {
  int64_t count = 1;
  for (int d = 0; d < tensor.dims; ++d) count *= tensor.shape[d];
  return count;
}

inline bool is_contiguous(const Tensor& tensor) {
  int64_t step = 1;
  bool packed = true;
  for (int d = tensor.dims; d-- > 0; step *= tensor.shape[d])
    packed &= tensor.shape[d] == 1 || tensor.strides[d] == step;
  return packed || step == 0;
}

// The elements of a contiguous tensor; of None, where it may be missing, null.
template <typename T, bool Missing = false>
struct Data {
  T* at = nullptr;
  int64_t size = 0;

  Data() = default;
  explicit Data(py::handle object) {
    if (Missing && object.is_none()) return;
    const Tensor tensor = read(object);
    if (!holds<T>(tensor) || !is_contiguous(tensor))
      refuse(object, "a contiguous tensor of the type that the kernel takes");
    at = tensor.at<T>();
    size = elements(tensor);
  }
};

template <typename T>
using Maybe = Data<T, true>;

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

// --- The tuples of call.py, by the order of their fields ---

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

// Whether all are contiguous tensors of these shapes, of the type and on the device of the first,
// which may be any.
inline bool alike(const py::tuple& objects, const py::tuple& shapes) {
  if (objects.size() != shapes.size()) return false;
  Tensor first, tensor;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(objects.ptr()); ++i) {
    const py::handle object = PyTuple_GET_ITEM(objects.ptr(), i),
                     shape = PyTuple_GET_ITEM(shapes.ptr(), i);
    if (object.is_none()) return false;
    if (exchange->read(object.ptr(), &tensor) != 0) {
      PyErr_Clear();  // such as a sparse tensor
      return false;
    }
    if (i == 0) first = tensor;
    if (tensor.code != first.code || tensor.bits != first.bits ||
        tensor.device_type != first.device_type || tensor.device_id != first.device_id ||
        tensor.dims != PyTuple_GET_SIZE(shape.ptr()) || !is_contiguous(tensor))
      return false;
    for (int d = 0; d < tensor.dims; ++d)
      if (tensor.shape[d] != PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), d))) return false;
  }
  return true;
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

template <typename T, bool Missing>
struct pybind11::detail::type_caster<mam::python::Data<T, Missing>> {
  using Taken = mam::python::Data<T, Missing>;
  PYBIND11_TYPE_CASTER(Taken, const_name("Tensor"));
  bool load(handle from, bool) {
    value = Taken(from);
    return true;
  }
};
