// Python's view of ops.h. Compiled once for each backend, with MAM_BACKEND (the namespace),
// MAM_DEVICE (whose tensors it takes: "cpu" or "cuda"), MAM_MODULE (the module's name), and
// MAM_TARGETS and MAM_VERSION (what was built). Python owns every buffer.

#include <pybind11/pybind11.h>

#include <cfenv>
#include <cstdint>

#include "arguments.h"
#include "mam/ops.h"
#include "step_fits.h"

#ifdef MAM_CPU_DISPATCH
#include "cpu/kernels.h"
#include "cpu/step.h"
#else
#include "cuda/step.h"
#endif

namespace py = pybind11;

namespace {

using mam::Draw;
using mam::Flags;
using mam::Launch;
using mam::Moments;
using mam::Tokens;
using mam::Values;
using mam::Weighting;
using mam::python::Choice;
using mam::python::Data;
using mam::python::Maybe;
using mam::python::Parameters;
namespace backend = mam::MAM_BACKEND;

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

void bind_value_ops(py::module_& m) {
  m.def("value_workspace", &backend::value_workspace,
        "Bytes of scratch memory for value_attention and value_mask.");
  m.def(
      "value_attention",
      [](const Values& values, const Flags& valid, Data<float> slope, const Moments& out,
         Maybe<void> workspace, const Launch& launch) {
        backend::value_attention(values, valid, slope.at, slope.size, out, workspace.at, launch);
      },
      NoGil());
  m.def(
      "value_mask",
      [](const Values& values, const Flags& valid, Data<float> slope, int64_t num_latents,
         int64_t heads, const Choice& choice, const Draw& draw, const Weighting& weighting,
         Data<uint8_t> mask, Data<float> importance, const Moments& out, Maybe<void> workspace,
         const Launch& launch) {
        backend::value_mask(values, valid, choice.maskable_of(valid), slope.at, num_latents, heads,
                            choice.latents, choice.num_chosen, choice.num_masked, draw, weighting,
                            mask.at, importance.at, out, workspace.at, launch);
      },
      NoGil());
}

void bind_selection(py::module_& m) {
  m.def("select_workspace", &backend::select_workspace, "Bytes of scratch memory for select.");
  m.def(
      "select",
      [](const Values& weights, const Flags& valid, Data<int32_t> num_samples, const Draw& draw,
         const Weighting& weighting, Data<uint8_t> mask, Maybe<void> workspace,
         const Launch& launch) {
        backend::select(weights, valid, num_samples.at, draw, weighting, mask.at, workspace.at,
                        launch);
      },
      NoGil());
  m.def(
      "draw_latents",
      [](int64_t num_latents, Draw draw, Data<int64_t> out, const Launch& launch) {
        draw.stream = mam::kStreamLatents;
        draw.sample_ids = nullptr;
        backend::draw_latents(num_latents, out.size, draw, out.at, launch);
      },
      NoGil());
}

void bind_inclusion(py::module_& m) {
  m.def(
      "inclusion_probabilities",
      [](const Values& weights, const Flags& valid, Data<int32_t> num_samples,
         Data<float> probability, Data<double> time, const Launch& launch) {
        backend::inclusion_probabilities(weights, valid, num_samples.at, probability.at, time.at,
                                         launch);
      },
      NoGil());
  m.def(
      "inclusion_probabilities_backward",
      [](Data<float> grad, const Values& weights, Data<float> probability, Data<double> time,
         Data<float> grad_weights, const Launch& launch) {
        backend::inclusion_probabilities_backward(grad.at, weights, probability.at, time.at,
                                                  grad_weights.at, launch);
      },
      NoGil());
}

void bind_token_ops(py::module_& m) {
  m.def("attention_workspace", &backend::attention_workspace,
        "Bytes of scratch memory for latent_attention and token_mask.");
  m.def(
      "latent_attention",
      [](const Tokens& query, const Tokens& key, const Tokens& value, const Flags& valid,
         float scale, Maybe<void> out, Data<float> logsumexp, Maybe<void> workspace,
         const Launch& launch) {
        backend::latent_attention(query, key, value, valid, scale, out.at, logsumexp.at,
                                  workspace.at, launch);
      },
      NoGil());
  m.def(
      "attention_importance",
      [](const Tokens& query, const Tokens& key, Data<float> logsumexp, Data<int64_t> latents,
         const Flags& valid, float scale, Data<float> importance, const Launch& launch) {
        backend::attention_importance(query, key, logsumexp.at, latents.at, latents.size, valid,
                                      scale, importance.at, launch);
      },
      NoGil());
  m.def(
      "token_mask",
      [](const Tokens& query, const Tokens& key, Data<float> logsumexp, const Flags& valid,
         float scale, const Choice& choice, const Draw& draw, const Weighting& weighting,
         Data<uint8_t> mask, Data<float> importance, Maybe<void> workspace, const Launch& launch) {
        backend::token_mask(query, key, logsumexp.at, choice.latents, choice.num_chosen, valid,
                            choice.maskable_of(valid), scale, choice.num_masked, draw, weighting,
                            mask.at, importance.at, workspace.at, launch);
      },
      NoGil());
}

void bind_token_gradients(py::module_& m) {
  m.def("attention_backward_workspace", &backend::attention_backward_workspace,
        "Bytes of scratch memory for latent_attention_backward.");
  m.def(
      "latent_attention_backward",
      [](Data<void> grad_out, Maybe<float> grad_logsumexp, const Tokens& query, const Tokens& key,
         const Tokens& value, const Flags& valid, Data<void> out, Data<float> logsumexp,
         float scale, Data<float> dq, Data<float> dk, Data<float> dv, Maybe<void> workspace,
         const Launch& launch) {
        backend::latent_attention_backward(grad_out.at, grad_logsumexp.at, query, key, value, valid,
                                           out.at, logsumexp.at, scale, dq.at, dk.at, dv.at,
                                           workspace.at, launch);
      },
      NoGil());
}

backend::Projection projection(const Parameters& of, int64_t heads) {
  return {of.at[0], of.at[1],       of.at[2], of.at[3], of.at[4],
          of.at[5], of.num_latents, heads,    of.width};
}

// The whole step of scalar values, and its gradient.
void bind_step(py::module_& m) {
#ifdef MAM_CPU_DISPATCH
  constexpr auto state_size = &mam::cpu::State::size;
  constexpr auto workspace = [](int64_t, int64_t, int64_t, int64_t, int64_t) { return 0; };
  m.def("step_backward_workspace", [](int64_t, int64_t, int64_t, int64_t) { return 0; });
#else
  constexpr auto state_size = &backend::state_size;
  constexpr auto workspace = &backend::step_workspace;
  m.def("step_backward_workspace", &backend::step_backward_workspace,
        "Bytes of scratch memory for masking_step_backward.");
#endif
  m.def(
      "step_memory",
      [=](int64_t rows, int64_t latents, int64_t heads, int64_t width, int64_t num_chosen) {
        return py::make_tuple(state_size(rows, latents, heads, width),
                              workspace(rows, latents, heads, width, num_chosen));
      },
      "Elements of the state of a masking step, and bytes of its scratch memory.");
  m.def(
      "step_fits",
      [](py::handle cells, py::handle parameters, int64_t heads, py::handle choice,
         py::handle weighting, py::handle draw, bool) {
        return mam::python::step_fits(cells, parameters, heads, choice, weighting, draw);
      },
      "Whether a masking step takes these as they are.");
  m.def(
      "step_backward_fits",
      [](py::handle grad_context, py::handle grad_penalty, py::handle parameters, int64_t heads,
         py::handle state, int64_t rows) {
        return mam::python::step_backward_fits(grad_context, grad_penalty, parameters, heads, state,
                                               rows, state_size);
      },
      "Whether the gradient of a masking step takes these as they are.");
  m.def(
      "masking_step",
      [](const Parameters& parameters, int64_t heads, const Values& values, const Flags& valid,
         const Choice& choice, const Draw& draw, const Weighting& weighting, bool visible,
         Data<uint8_t> mask, Data<float> importance, Data<float> context, Data<float> penalty,
         Data<float> state, [[maybe_unused]] Maybe<void> workspace, const Launch& launch) {
        const backend::Step step{projection(parameters, heads),
                                 parameters.at[6],
                                 values,
                                 valid,
                                 choice.maskable_of(valid),
                                 choice.latents,
                                 choice.num_chosen,
                                 choice.num_masked,
                                 choice.mask_ratio,
                                 draw,
                                 weighting,
                                 visible,
#ifdef MAM_CPU_DISPATCH  // elsewhere zeros that are drawn apart are drawn after the step
                                 {choice.num_zeros, choice.zero_ratio}
#endif
        };
        const backend::StepOutput out{mask.at, importance.at, context.at, penalty.at, state.at};
#ifdef MAM_CPU_DISPATCH
        backend::masking_step(step, out,
                              backend::threads_worth_step(values, step.parameters, launch.threads));
#else
        backend::masking_step(step, out, workspace.at, launch);
#endif
      },
      NoGil());
  m.def(
      "masking_step_backward",
      [](const Parameters& parameters, int64_t heads, int64_t rows, Data<float> state,
         Maybe<float> grad_context, Maybe<float> grad_penalty, const Parameters& grads,
         [[maybe_unused]] Maybe<void> workspace, const Launch& launch) {
        const backend::Projection from = projection(parameters, heads);
        const backend::StepGradient incoming{grad_context.at, grad_penalty.at};
        float* const* const to = grads.at;
#ifdef MAM_CPU_DISPATCH
        backend::masking_step_backward(from, parameters.at[6], rows, state.at, incoming,
                                       {to[0], to[1], to[2], to[3], to[4], to[5]}, to[6],
                                       backend::threads_worth_backward(rows, from, launch.threads));
#else
        backend::masking_step_backward(from, parameters.at[6], rows, state.at, incoming,
                                       {to[0], to[1], to[2], to[3], to[4], to[5], to[6]},
                                       workspace.at, launch);
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
  mam::python::find_exchange();
  bind_value_ops(m);
  bind_selection(m);
  bind_inclusion(m);
  bind_token_ops(m);
  bind_token_gradients(m);
  bind_step(m);
  m.def(
      "is_plain", [](const py::object& object) { return mam::python::is_plain(object.ptr()); },
      "Whether an object is a number, a string or None, or a tensor of no subclass that has memory "
      "on a CPU or a GPU and is not negated lazily; of a tuple, whether all in it are.");
  m.attr("device") = MAM_DEVICE;
  m.attr("build_info") = build_info();
}
