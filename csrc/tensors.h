// Tensors of Python, read without torch's headers, so that one build serves every torch:
// torch.Tensor offers a table of C functions for this, DLPack's exchange API. The part of its
// binary interface that is used, version 1, is declared here
// (https://dmlc.github.io/dlpack/latest/c_api.html).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "mam/ops.h"

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
inline py::handle tensor_type, parameter_type, is_neg;

// Called once, when the module is imported.
inline void find_exchange() {
  constexpr const char* kName = "__dlpack_c_exchange_api__";
  const py::module_ torch = py::module_::import("torch");
  const py::object type = torch.attr("Tensor");
  if (!py::hasattr(type, kName))
    throw py::import_error(
        "expected a torch whose tensors offer DLPack's exchange API, as those of 2.11 do");
  exchange = static_cast<const Exchange*>(
      PyCapsule_GetPointer(py::object(type.attr(kName)).ptr(), "dlpack_exchange_api"));
  if (!exchange) throw py::error_already_set();
  if (exchange->major != 1)
    throw py::import_error("expected version 1 of DLPack's exchange API; torch offers " +
                           std::to_string(exchange->major));
  tensor_type = py::object(type).release();
  is_neg = py::object(type.attr("is_neg")).release();
  parameter_type = py::object(torch.attr("nn").attr("Parameter")).release();
}

[[noreturn, gnu::cold, gnu::noinline]] inline void refuse(py::handle got, const char* expected) {
  const auto named = [&](const char* name) {
    return " " + std::string(py::str(py::getattr(got, name, py::str())));
  };
  throw py::type_error("expected " + std::string(expected) + " on " MAM_DEVICE "; got " +
                       std::string(py::str(py::type::handle_of(got).attr("__name__"))) +
                       named("dtype") + named("shape") + named("device"));
}

constexpr bool kIsHost = std::string_view(MAM_DEVICE) == "cpu";

inline Tensor read_anywhere(py::handle object) {
  Tensor tensor;
  if (object.is_none()) refuse(object, "a tensor");
  if (exchange->read(object.ptr(), &tensor) != 0) throw py::error_already_set();
  return tensor;
}

// False for what has no elements in memory one by one, such as a sparse tensor.
inline bool try_read(py::handle object, Tensor* tensor) {
  if (object.is_none()) return false;
  if (exchange->read(object.ptr(), tensor) == 0) return true;
  PyErr_Clear();
  return false;
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

// Whether an object is a number, a string or None, or a tensor that is what it seems to be: of no
// subclass, with memory on a CPU or a GPU, and not negated lazily. Of a tuple, whether all in it
// are.
inline bool is_plain(PyObject* object) {
  if (PyTuple_Check(object)) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); ++i)
      if (!is_plain(PyTuple_GET_ITEM(object, i))) return false;
    return true;
  }
  if (object == Py_None || PyFloat_CheckExact(object) || PyLong_Check(object) ||
      PyUnicode_CheckExact(object))
    return true;
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type != tensor_type.ptr() && type != parameter_type.ptr()) return false;
  Tensor tensor;
  if (!try_read(object, &tensor)) return false;
  if (tensor.device_type != kOnHost && tensor.device_type != kOnGpu) return false;
  if (!tensor.data && elements(tensor) > 0) return false;  // zeros that nobody has written yet
  if (tensor.code != kFloat && tensor.code != kBfloat) return true;
  const auto negated = py::reinterpret_steal<py::object>(PyObject_CallOneArg(is_neg.ptr(), object));
  if (!negated) throw py::error_already_set();
  return negated.ptr() == Py_False;
}

}  // namespace python
}  // namespace mam

template <typename T, bool Missing>
struct pybind11::detail::type_caster<mam::python::Data<T, Missing>> {
  using Taken = mam::python::Data<T, Missing>;
  PYBIND11_TYPE_CASTER(Taken, const_name("Tensor"));
  bool load(handle from, bool) {
    value = Taken(from);
    return true;
  }
};
