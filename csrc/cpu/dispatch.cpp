// Which instruction set runs: the best one that was compiled, the CPU has, and MAM_CPU_ISA allows.

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace mam {
namespace cpu {

namespace baseline {
extern const Kernels table;
}
#if MAM_X86
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

enum Level { kBaseline, kAvx2, kAvx512 };

Level supported_level() {
#if MAM_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx2 && avx512 ? kAvx512 : avx2 ? kAvx2 : kBaseline;
#else
  return kBaseline;
#endif
}

Level allowed_level() {
  const char* named = std::getenv("MAM_CPU_ISA");
  const std::string name = named ? named : "";
  if (name.empty() || name == "avx512") return kAvx512;
  if (name == "avx2") return kAvx2;
  if (name == "baseline") return kBaseline;
  throw std::invalid_argument("MAM_CPU_ISA: expected baseline, avx2 or avx512; got " + name);
}

const Kernels& choose() {
  const Level supported = supported_level(), allowed = allowed_level();
  const Level level = supported < allowed ? supported : allowed;
#if MAM_X86
  if (level == kAvx512) return avx512::table;
  if (level == kAvx2) return avx2::table;
#endif
  (void)level;
  return baseline::table;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace cpu
}  // namespace mam
