#include "cpu/sparse.h"

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace mam {
namespace cpu {

namespace {

[[noreturn]] void fail(int64_t row, const std::string& what) {
  throw std::invalid_argument("CSR values, row " + std::to_string(row) + ": expected " + what);
}

// Whether the columns are in range and grow, as they do in nearly every matrix: then none occurs
// twice. Differences of numbers that are not negative are exact, so their sign says which is less.
template <typename Index>
bool grow(const Index* column, int64_t count, int64_t positions) {
  using Bits = std::make_unsigned_t<Index>;
  constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  if (count == 0) return true;
  Bits less = kSign, any = static_cast<Bits>(column[count - 1]);
  for (int64_t i = 0; i + 1 < count; ++i) {
    less &= static_cast<Bits>(column[i]) - static_cast<Bits>(column[i + 1]);
    any |= static_cast<Bits>(column[i]);
  }
  return (less & kSign) && !(any & kSign) && column[count - 1] < positions;
}

template <typename Index>
void require_columns(const Index* column, int64_t count, int64_t positions, int64_t row) {
  if (grow(column, count, positions)) return;
  std::vector<bool> seen(static_cast<size_t>(positions));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = column[i];
    if (at < 0 || at >= positions)
      fail(row, "columns in [0, " + std::to_string(positions) + "); got " + std::to_string(at));
    if (seen[static_cast<size_t>(at)])
      fail(row, "each column once; got column " + std::to_string(at) + " twice");
    seen[static_cast<size_t>(at)] = true;
  }
}

template <typename Index>
StoredRow stored_row(const Values& values, int64_t row) {
  const Index* const crow = static_cast<const Index*>(values.crow);
  const int64_t first = crow[row], last = crow[row + 1];
  if (row == 0 && first != 0) fail(row, "crow to begin at 0; got " + std::to_string(first));
  if (first < 0 || last < first || last > values.stored)
    fail(row, "crow to grow from 0 to the " + std::to_string(values.stored) +
                  " stored entries; got " + std::to_string(first) + " and then " +
                  std::to_string(last));
  if (row == values.rows - 1 && last != values.stored)
    fail(row, "crow to end at the " + std::to_string(values.stored) + " stored entries; got " +
                  std::to_string(last));
  if (last - first > values.positions)
    fail(row, "at most " + std::to_string(values.positions) + " entries, one a column; got " +
                  std::to_string(last - first));
  require_columns(static_cast<const Index*>(values.col) + first, last - first, values.positions,
                  row);
  return {first, last - first};
}

}  // namespace

StoredRow stored_row(const Values& values, int64_t row) {
  return values.index64 ? stored_row<int64_t>(values, row) : stored_row<int32_t>(values, row);
}

}  // namespace cpu
}  // namespace mam
