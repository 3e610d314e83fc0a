// One row of a CSR matrix, whose indices nobody has looked at yet.
#pragma once

#include <cstdint>

#include "mam/ops.h"

namespace mam {
namespace cpu {

// Where a row's entries are stored.
struct StoredRow {
  int64_t first, count;
};

// The entries of a row, whose columns are then sound: in range, and each of them once.
//
// Throws std::invalid_argument, which names the row and what is wrong: offsets that do not begin at
// 0, fall, or do not end at the number of entries; more entries than columns; a column out of range
// or twice.
StoredRow stored_row(const Values& values, int64_t row);

}  // namespace cpu
}  // namespace mam
