// Python's view of ops.h. Compiled once for each backend, with MAM_BACKEND (the namespace),
// MAM_DEVICE (whose tensors it takes: "cpu" or "cuda"), MAM_MODULE (the module's name), and
// MAM_TARGETS and MAM_VERSION (what was built). Addresses come as integers, 0 for null; the Python
// side owns every buffer.

#include <pybind11/pybind11.h>

#include <cfenv>
#include <cstdint>

#include "mam/ops.h"

#ifdef MAM_CPU_DISPATCH
#include "cpu/kernels.h"
#include "cpu/step.h"
#else
#include "cuda/step.h"
#endif

namespace py = pybind11;

namespace {

using mam::Draw;
using mam::DType;
using mam::Flags;
using mam::Launch;
using mam::Moments;
using mam::Tokens;
using mam::Values;
using mam::Weighting;
namespace backend = mam::MAM_BACKEND;

using Address = uintptr_t;
// Subnormal numbers are not flushed, even if the calling thread flushes them
// (torch.set_flush_denormal): a result depends on the arguments alone.
class DefaultFloats {
 public:
  DefaultFloats() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloats() { std::fesetenv(&before_); }
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
  std::fenv_t before_;
};

using NoGil = py::call_guard<py::gil_scoped_release, DefaultFloats>;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void bind_structures(py::module_& m) {
  py::enum_<DType>(m, "DType", py::module_local())
      .value("float32", DType::float32)
      .value("float16", DType::float16)
      .value("bfloat16", DType::bfloat16);

  py::class_<Values>(m, "Values", py::module_local())
      .def(py::init([](Address data, DType dtype, int64_t rows, int64_t positions,
                       int64_t stride_row, int64_t stride_position, Address crow, Address col,
                       bool index64, int64_t stored) {
        return Values{at<void>(data),  dtype,          rows,          positions, stride_row,
                      stride_position, at<void>(crow), at<void>(col), index64,   stored};
      }));

  py::class_<Flags>(m, "Flags", py::module_local())
      .def(py::init([](Address data, int64_t stride_row, int64_t stride_position) {
        return Flags{at<uint8_t>(data), stride_row, stride_position};
      }));

  py::class_<Draw>(m, "Draw", py::module_local())
      .def(py::init([](uint64_t seed, uint32_t step, Address seed_ptr, Address step_ptr,
                       Address sample_ids, uint32_t stream) {
        return Draw{
            seed,  step, at<int64_t>(seed_ptr), at<int64_t>(step_ptr), at<int64_t>(sample_ids),
            stream};
      }));

  py::class_<Weighting>(m, "Weighting", py::module_local())
      .def(py::init([](float eps, float inverse_temperature) {
        return Weighting{eps, inverse_temperature};
      }));

  py::class_<Moments>(m, "Moments", py::module_local())
      .def(py::init([](Address log_partition, Address mean, Address variance) {
        return Moments{at<float>(log_partition), at<float>(mean), at<float>(variance)};
      }));

  py::class_<Launch>(m, "Launch", py::module_local())
      .def(py::init([](uint64_t stream, int threads) { return Launch{stream, threads}; }));
}

void bind_value_ops(py::module_& m) {
  m.def("value_workspace", &backend::value_workspace,
        "Bytes of scratch memory for value_attention and value_mask.");
  m.def(
      "value_attention",
      [](const Values& values, const Flags& valid, Address slope, int64_t slopes,
         const Moments& out, Address workspace, const Launch& launch) {
        backend::value_attention(values, valid, at<float>(slope), slopes, out, at<void>(workspace),
                                 launch);
      },
      NoGil());
  m.def(
      "value_mask",
      [](const Values& values, const Flags& valid, const Flags& maskable, Address slope,
         int64_t num_latents, int64_t heads, Address latents, int64_t num_chosen,
         Address num_masked, const Draw& draw, const Weighting& weighting, Address mask,
         Address importance, const Moments& out, Address workspace, const Launch& launch) {
        backend::value_mask(values, valid, maskable, at<float>(slope), num_latents, heads,
                            at<int64_t>(latents), num_chosen, at<int32_t>(num_masked), draw,
                            weighting, at<uint8_t>(mask), at<float>(importance), out,
                            at<void>(workspace), launch);
      },
      NoGil());
}

void bind_selection(py::module_& m) {
  m.def("select_workspace", &backend::select_workspace, "Bytes of scratch memory for select.");
  m.def(
      "select",
      [](const Values& weights, const Flags& valid, Address num_samples, const Draw& draw,
         const Weighting& weighting, Address mask, Address workspace, const Launch& launch) {
        backend::select(weights, valid, at<int32_t>(num_samples), draw, weighting,
                        at<uint8_t>(mask), at<void>(workspace), launch);
      },
      NoGil());
  m.def(
      "draw_latents",
      [](int64_t num_latents, int64_t size, const Draw& draw, Address out, const Launch& launch) {
        backend::draw_latents(num_latents, size, draw, at<int64_t>(out), launch);
      },
      NoGil());
}

void bind_inclusion(py::module_& m) {
  m.def(
      "inclusion_probabilities",
      [](const Values& weights, const Flags& valid, Address num_samples, Address probability,
         Address time, const Launch& launch) {
        backend::inclusion_probabilities(weights, valid, at<int32_t>(num_samples),
                                         at<float>(probability), at<double>(time), launch);
      },
      NoGil());
  m.def(
      "inclusion_probabilities_backward",
      [](Address grad, const Values& weights, Address probability, Address time,
         Address grad_weights, const Launch& launch) {
        backend::inclusion_probabilities_backward(at<float>(grad), weights, at<float>(probability),
                                                  at<double>(time), at<float>(grad_weights),
                                                  launch);
      },
      NoGil());
}

void bind_token_ops(py::module_& m) {
  py::class_<Tokens>(m, "Tokens", py::module_local())
      .def(py::init([](Address data, DType dtype, int64_t batch, int64_t positions, int64_t heads,
                       int64_t width, int64_t stride_batch, int64_t stride_position,
                       int64_t stride_head) {
        return Tokens{at<void>(data), dtype,        batch,           positions,  heads,
                      width,          stride_batch, stride_position, stride_head};
      }));
  m.def("attention_workspace", &backend::attention_workspace,
        "Bytes of scratch memory for latent_attention and token_mask.");
  m.def(
      "latent_attention",
      [](const Tokens& query, const Tokens& key, const Tokens& value, const Flags& valid,
         float scale, Address out, Address logsumexp, Address workspace, const Launch& launch) {
        backend::latent_attention(query, key, value, valid, scale, at<void>(out),
                                  at<float>(logsumexp), at<void>(workspace), launch);
      },
      NoGil());
  m.def(
      "attention_importance",
      [](const Tokens& query, const Tokens& key, Address logsumexp, Address latents,
         int64_t num_chosen, const Flags& valid, float scale, Address importance,
         const Launch& launch) {
        backend::attention_importance(query, key, at<float>(logsumexp), at<int64_t>(latents),
                                      num_chosen, valid, scale, at<float>(importance), launch);
      },
      NoGil());
  m.def(
      "token_mask",
      [](const Tokens& query, const Tokens& key, Address logsumexp, Address latents,
         int64_t num_chosen, const Flags& valid, const Flags& maskable, float scale,
         Address num_masked, const Draw& draw, const Weighting& weighting, Address mask,
         Address importance, Address workspace, const Launch& launch) {
        backend::token_mask(query, key, at<float>(logsumexp), at<int64_t>(latents), num_chosen,
                            valid, maskable, scale, at<int32_t>(num_masked), draw, weighting,
                            at<uint8_t>(mask), at<float>(importance), at<void>(workspace), launch);
      },
      NoGil());
}

void bind_token_gradients(py::module_& m) {
  m.def("attention_backward_workspace", &backend::attention_backward_workspace,
        "Bytes of scratch memory for latent_attention_backward.");
  m.def(
      "latent_attention_backward",
      [](Address grad_out, Address grad_logsumexp, const Tokens& query, const Tokens& key,
         const Tokens& value, const Flags& valid, Address out, Address logsumexp, float scale,
         Address dq, Address dk, Address dv, Address workspace, const Launch& launch) {
        backend::latent_attention_backward(at<void>(grad_out), at<float>(grad_logsumexp), query,
                                           key, value, valid, at<void>(out), at<float>(logsumexp),
                                           scale, at<float>(dq), at<float>(dk), at<float>(dv),
                                           at<void>(workspace), launch);
      },
      NoGil());
}

// The whole step of scalar values, and its gradient.
void bind_step(py::module_& m) {
  using backend::Projection;
  using backend::Step;
  py::class_<Projection>(m, "Projection", py::module_local())
      .def(py::init([](Address latents, Address in_weight, Address in_bias, Address token_weight,
                       Address token_bias, Address out_weight, int64_t num_latents, int64_t heads,
                       int64_t width) {
        return Projection{at<float>(latents),
                          at<float>(in_weight),
                          at<float>(in_bias),
                          at<float>(token_weight),
                          at<float>(token_bias),
                          at<float>(out_weight),
                          num_latents,
                          heads,
                          width};
      }));
#ifdef MAM_CPU_DISPATCH
  m.def("state_size", &mam::cpu::State::size, "Elements of the state of a masking step.");
  m.def("step_workspace", [](int64_t, int64_t, int64_t, int64_t, int64_t) { return 0; });
  m.def("step_backward_workspace", [](int64_t, int64_t, int64_t, int64_t) { return 0; });
#else
  m.def("state_size", &backend::state_size, "Elements of the state of a masking step.");
  m.def("step_workspace", &backend::step_workspace, "Bytes of scratch memory for masking_step.");
  m.def("step_backward_workspace", &backend::step_backward_workspace,
        "Bytes of scratch memory for masking_step_backward.");
#endif
  m.def(
      "masking_step",
      [](const Projection& parameters, Address out_bias, const Values& values, const Flags& valid,
         const Flags& maskable, Address chosen, int64_t num_chosen, Address num_masked,
         double mask_ratio, [[maybe_unused]] Address num_zeros, [[maybe_unused]] double zero_ratio,
         const Draw& draw, const Weighting& weighting, bool visible, Address mask,
         Address importance, Address context, Address penalty, Address state,
         [[maybe_unused]] Address workspace, const Launch& launch) {
        const Step step{parameters,
                        at<float>(out_bias),
                        values,
                        valid,
                        maskable,
                        at<int64_t>(chosen),
                        num_chosen,
                        at<int32_t>(num_masked),
                        mask_ratio,
                        draw,
                        weighting,
                        visible,
#ifdef MAM_CPU_DISPATCH  // elsewhere zeros that are drawn apart are drawn after the step
                        {at<int32_t>(num_zeros), zero_ratio}
#endif
        };
        const backend::StepOutput out{at<uint8_t>(mask), at<float>(importance), at<float>(context),
                                      at<float>(penalty), at<float>(state)};
#ifdef MAM_CPU_DISPATCH
        backend::masking_step(step, out,
                              backend::threads_worth_step(values, parameters, launch.threads));
#else
        backend::masking_step(step, out, at<void>(workspace), launch);
#endif
      },
      NoGil());
  m.def(
      "masking_step_backward",
      [](const Projection& parameters, Address out_bias, int64_t rows, Address state,
         Address grad_context, Address grad_penalty, Address latents, Address in_weight,
         Address in_bias, Address token_weight, Address token_bias, Address out_weight,
         Address grad_out_bias, [[maybe_unused]] Address workspace, const Launch& launch) {
        const backend::StepGradient incoming{at<float>(grad_context), at<float>(grad_penalty)};
#ifdef MAM_CPU_DISPATCH
        backend::masking_step_backward(
            parameters, at<float>(out_bias), rows, at<float>(state), incoming,
            {at<float>(latents), at<float>(in_weight), at<float>(in_bias), at<float>(token_weight),
             at<float>(token_bias), at<float>(out_weight)},
            at<float>(grad_out_bias),
            backend::threads_worth_backward(rows, parameters, launch.threads));
#else
        backend::masking_step_backward(
            parameters, at<float>(out_bias), rows, at<float>(state), incoming,
            {at<float>(latents), at<float>(in_weight), at<float>(in_bias), at<float>(token_weight),
             at<float>(token_bias), at<float>(out_weight), at<float>(grad_out_bias)},
            at<void>(workspace), launch);
#endif
      },
      NoGil());
}

py::dict build_info() {
  py::dict info;
  info["version"] = MAM_VERSION;
  info["compiler"] = __VERSION__;
  info["targets"] = MAM_TARGETS;
#ifdef MAM_CPU_DISPATCH
  info["active"] = backend::kernels().name;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(MAM_MODULE, m) {
  bind_structures(m);
  bind_value_ops(m);
  bind_selection(m);
  bind_inclusion(m);
  bind_token_ops(m);
  bind_token_gradients(m);
  bind_step(m);
  m.attr("device") = MAM_DEVICE;
  m.attr("build_info") = build_info();
}
