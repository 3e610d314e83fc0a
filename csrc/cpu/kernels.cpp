// The kernels for one instruction set: MAM_ISA is baseline, avx2 or avx512, and the compiler's
// flags allow it.

#include "cpu/kernels.h"

#include "cpu/compaction.h"
#include "cpu/direct.h"
#include "cpu/fused_selection.h"
#include "cpu/inclusion.h"
#include "cpu/order_statistics.h"
#include "cpu/products.h"
#include "cpu/race.h"
#include "cpu/series.h"
#include "cpu/softmax.h"
#include "cpu/softmax_backward.h"

#define MAM_STRING_OF(token) #token
#define MAM_STRING(token) MAM_STRING_OF(token)

namespace mam {
namespace cpu {
namespace MAM_ISA {

extern const Kernels table;
const Kernels table = {
    MAM_STRING(MAM_ISA),
    compact,
    range,
    partition,
    power_sums,
    moments,
    importance,
    direct_moments,
    direct_importance,
    race,
    uniform_race,
    adjust,
    threshold,
    mark,
    draw_fused,
    inclusion,
    inclusion_gradient,
    dots,
    combine,
    kLatents,
    gather,
    attend,
    token_importance,
    attend_backward,
};

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
