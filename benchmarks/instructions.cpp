// One call of a CPU kernel on fixed inputs, for counting its instructions: `instructions NAME`.
// Without a name, the names are listed. What is counted is what `measured` does (instructions.py).

#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/step.h"
#include "mam/keys.h"
#include "mam/ops.h"
#include "mam/philox.h"

// Valgrind knows AVX2 at most: the AVX-512 kernels, which take long to compile, are never called.
namespace mam {
namespace cpu {
namespace avx512 {
extern const Kernels table;
const Kernels table{};
}  // namespace avx512
}  // namespace cpu
}  // namespace mam

extern "C" __attribute__((noinline, noclone)) void measured(const std::function<void()>& call) {
  call();
}

namespace {

constexpr int64_t kCells = 2, kPositions = 19264, kLatents = 128, kHeads = 8, kWidth = 256,
                  kSlopes = kLatents * kHeads, kChosen = 38;

double uniform(uint32_t number, uint32_t stream) {
  return mam::uniform(mam::philox(1, number, 0, 0, stream).word[0]);
}

std::vector<float> floats(int64_t count, uint32_t stream, double scale) {
  std::vector<float> out;
  for (int64_t i = 0; i < count; ++i)
    out.push_back(static_cast<float>((2 * uniform(static_cast<uint32_t>(i), stream) - 1) * scale));
  return out;
}

// Cells of which 8 % of the genes are there, with values up to about 5, and the slopes of the
// latents.
struct Cells {
  std::vector<float> values, stored, slope = floats(kSlopes, 3, 0.5);
  std::vector<int64_t> crow = {0}, col, latents;
  std::vector<int32_t> num_masked =
      std::vector<int32_t>(kCells, static_cast<int32_t>(0.3 * kPositions));
  std::vector<float> log_partition = std::vector<float>(kCells * kSlopes), mean = log_partition,
                     variance = log_partition;
  std::vector<float> importance = std::vector<float>(kCells * kPositions);
  std::vector<uint8_t> mask = std::vector<uint8_t>(kCells * kPositions);

  Cells() {
    for (int64_t i = 0; i < kCells * kPositions; ++i) {
      const bool there = uniform(static_cast<uint32_t>(i), 1) < 0.08;
      values.push_back(there ? static_cast<float>(0.5 + 4.5 * uniform(static_cast<uint32_t>(i), 2))
                             : 0.0f);
      if (there) stored.push_back(values.back()), col.push_back(i % kPositions);
      if (i % kPositions == kPositions - 1) crow.push_back(static_cast<int64_t>(stored.size()));
    }
    for (int64_t n = 0; n < kChosen; ++n) latents.push_back(3 * n);
  }

  mam::Values dense() const {
    return {values.data(), mam::DType::float32, kCells, kPositions, kPositions, 1, nullptr, nullptr,
            false};
  }
  mam::Values sparse() const {
    return {stored.data(),
            mam::DType::float32,
            kCells,
            kPositions,
            0,
            0,
            crow.data(),
            col.data(),
            true,
            static_cast<int64_t>(col.size())};
  }
  mam::Moments moments() { return {log_partition.data(), mean.data(), variance.data()}; }

  void mask_values(const mam::Values& view) {
    const mam::Draw draw{1, 0, nullptr, nullptr, nullptr, 0};
    mam::cpu::value_mask(view, {}, {}, slope.data(), kLatents, kHeads, latents.data(), kChosen,
                         num_masked.data(), draw, {1e-8f, 1.0f}, mask.data(), importance.data(),
                         moments(), nullptr, {0, 1});
  }
};

struct Weights {
  std::vector<float> weight = floats(kCells * kPositions, 4, 0.05);
  std::vector<int32_t> count = std::vector<int32_t>(kCells, static_cast<int32_t>(0.3 * kPositions));
  std::vector<uint8_t> mask = std::vector<uint8_t>(kCells * kPositions);

  std::vector<float> probability = std::vector<float>(kCells * kPositions), gradient = probability;
  std::vector<double> time = std::vector<double>(kCells);

  Weights() {
    for (float& w : weight) w = 1.0f + w;
  }
  mam::Values view() const {
    return {weight.data(), mam::DType::float32, kCells, kPositions, kPositions, 1, nullptr, nullptr,
            false};
  }
  void select() {
    mam::cpu::select(view(), {}, count.data(), {1, 0, nullptr, nullptr, nullptr, 0}, {0.0f, 1.0f},
                     mask.data(), nullptr, {0, 1});
  }
  void include() {
    mam::cpu::inclusion_probabilities(view(), {}, count.data(), probability.data(), time.data(),
                                      {0, 1});
  }
  void differentiate() {
    mam::cpu::inclusion_probabilities_backward(probability.data(), view(), probability.data(),
                                               time.data(), gradient.data(), {0, 1});
  }
};

// A whole masking step, from the parameters.
struct WholeStep {
  Cells cells;
  std::vector<float> latents = floats(kLatents * kWidth, 5, 1),
                     in_weight = floats(3 * kWidth * kWidth, 6, 0.1),
                     in_bias = floats(3 * kWidth, 7, 0.1), token_weight = floats(kWidth, 8, 1),
                     token_bias = floats(kWidth, 9, 1),
                     out_weight = floats(kWidth * kWidth, 10, 0.1),
                     out_bias = floats(kWidth, 11, 0.1);
  std::vector<float> d_latents = latents, d_in_weight = in_weight, d_in_bias = in_bias,
                     d_token_weight = token_weight, d_token_bias = token_bias,
                     d_out_weight = out_weight, d_out_bias = out_bias;
  std::vector<float> context = std::vector<float>(kCells * kWidth), penalty = {0.5f},
                     state = std::vector<float>(static_cast<size_t>(
                         mam::cpu::State::size(kCells, kLatents, kHeads, kWidth)));
  mam::cpu::Projection parameters{latents.data(),
                                  in_weight.data(),
                                  in_bias.data(),
                                  token_weight.data(),
                                  token_bias.data(),
                                  out_weight.data(),
                                  kLatents,
                                  kHeads,
                                  kWidth};

  void forward(const mam::Values& values) {
    const mam::Draw draw{1, 0, nullptr, nullptr, nullptr, mam::kStreamPositions};
    mam::cpu::masking_step(
        {parameters,
         out_bias.data(),
         values,
         {},
         {},
         nullptr,
         kChosen,
         nullptr,
         0.3,
         draw,
         {1e-8f, 1.0f},
         false},
        {cells.mask.data(), cells.importance.data(), context.data(), penalty.data(), state.data()},
        1);
  }
  void backward() {
    mam::cpu::masking_step_backward(
        parameters, out_bias.data(), kCells, state.data(), {context.data(), penalty.data()},
        {d_latents.data(), d_in_weight.data(), d_in_bias.data(), d_token_weight.data(),
         d_token_bias.data(), d_out_weight.data()},
        d_out_bias.data(), 1);
  }
};

// Tokens of cells, keys and values side by side, and all latents.
struct TokensOfCells {
  static constexpr int64_t kTokens = 512, kHeadWidth = kWidth / kHeads;
  std::vector<float> query = floats(kLatents * kWidth, 12, 1),
                     both = floats(kCells * kTokens * 2 * kWidth, 13, 1);
  std::vector<float> out = std::vector<float>(kCells * kLatents * kWidth),
                     logsumexp = std::vector<float>(kCells * kSlopes),
                     importance = std::vector<float>(kCells * kTokens);
  std::vector<uint8_t> mask = std::vector<uint8_t>(kCells * kTokens);
  std::vector<int32_t> num_masked =
      std::vector<int32_t>(kCells, static_cast<int32_t>(0.3 * kTokens));
  std::vector<int64_t> latents = Cells().latents;
  mam::Tokens queries{query.data(), mam::DType::float32, 1, kLatents, kHeads, kHeadWidth, 0,
                      kWidth,       kHeadWidth};
  float scale = 0.18f;

  mam::Tokens tokens(int64_t from) const {
    return {both.data() + from, mam::DType::float32,  kCells,     kTokens,   kHeads,
            kHeadWidth,         kTokens * 2 * kWidth, 2 * kWidth, kHeadWidth};
  }
  void attend() {
    mam::cpu::latent_attention(queries, tokens(0), tokens(kWidth), {}, scale, out.data(),
                               logsumexp.data(), nullptr, {0, 1});
  }
  void mask_tokens() {
    const mam::Draw draw{1, 0, nullptr, nullptr, nullptr, 0};
    mam::cpu::token_mask(queries, tokens(0), logsumexp.data(), latents.data(), kChosen, {}, {},
                         scale, num_masked.data(), draw, {1e-8f, 1.0f}, mask.data(),
                         importance.data(), nullptr, {0, 1});
  }
};

const std::map<std::string, std::function<void()>> kCalls = {
    {"value attention, dense",
     [] {
       Cells cells;
       measured([&] {
         mam::cpu::value_attention(cells.dense(), {}, cells.slope.data(), kSlopes, cells.moments(),
                                   nullptr, {0, 1});
       });
     }},
    {"masking step, dense",
     [] {
       WholeStep step;
       measured([&] { step.forward(step.cells.dense()); });
     }},
    {"masking step, CSR",
     [] {
       WholeStep step;
       measured([&] { step.forward(step.cells.sparse()); });
     }},
    {"masking step, backward",
     [] {
       WholeStep step;
       step.forward(step.cells.dense());
       measured([&] { step.backward(); });
     }},
    {"value mask, dense",
     [] {
       Cells cells;
       measured([&] { cells.mask_values(cells.dense()); });
     }},
    {"value mask, CSR",
     [] {
       Cells cells;
       measured([&] { cells.mask_values(cells.sparse()); });
     }},
    {"selection",
     [] {
       Weights weights;
       measured([&] { weights.select(); });
     }},
    {"inclusion probabilities",
     [] {
       Weights weights;
       measured([&] { weights.include(); });
     }},
    {"inclusion probabilities, backward",
     [] {
       Weights weights;
       weights.include();
       measured([&] { weights.differentiate(); });
     }},
    {"latent attention",
     [] {
       TokensOfCells cells;
       measured([&] { cells.attend(); });
     }},
    {"token mask",
     [] {
       TokensOfCells cells;
       cells.attend();
       measured([&] { cells.mask_tokens(); });
     }},
};

}  // namespace

int main(int count, char** arguments) {
  if (count == 2 && kCalls.count(arguments[1])) {
    kCalls.at(arguments[1])();
    return 0;
  }
  for (const auto& call : kCalls) std::printf("%s\n", call.first.c_str());
  return count == 1 ? 0 : 2;
}
