// The k-th smallest key of a row, by narrowing an interval of keys: no sort. Small rows and unlucky
// guesses halve the interval's bits.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace mam {
namespace cpu {
namespace MAM_ISA {

constexpr int64_t kSampleSize = 512;
constexpr int64_t kFew = 4 * kFloats;

MAM_INLINE int64_t padded_to_vectors(int64_t count) {
  return (count + kFloats - 1) / kFloats * kFloats;
}

static int64_t count_below(const int32_t* keys, int64_t padded, int32_t pivot) {
  int64_t count = 0;
  for (int64_t i = 0; i < padded; i += kFloats)
    count += __builtin_popcount(less_bits(load<Int>(keys + i), splat<Int>(pivot)));
  return count;
}

// The keys in [from, to) go to `out` (which may be `keys`), padded; returns their number, and how
// many are below.
static int64_t collect(const int32_t* keys, int64_t padded, int32_t from, int32_t to, int32_t* out,
                       int64_t* below) {
  int32_t* const begin = out;
  Int less{};
  for (int64_t i = 0; i < padded; i += kFloats) {
    const Int key = load<Int>(keys + i);
    const Int under = key < from;
    less -= under;
    // unsigned, [from, to) is one comparison
    out = append(out, key,
                 less_bits(bits<Word>(key - from), splat<Word>(static_cast<uint32_t>(to - from))));
  }
  const int64_t count = out - begin;
  for (int64_t i = count; i < padded_to_vectors(count); ++i) begin[i] = kNeverDrawn;
  *below = sum(less);
  return count;
}

// A pivot that about `rank` of the keys are below, found by bisection of its bits between `from`
// and `to`.
static int32_t near_rank(const int32_t* keys, int64_t padded, double rank, int32_t from,
                         int32_t to) {
  constexpr double kSlack = 2.0;
  while (to - from > 1) {
    const int32_t middle = from + (to - from) / 2;
    const double below = static_cast<double>(count_below(keys, padded, middle));
    if (below >= rank - kSlack && below <= rank + kSlack) return middle;
    (below < rank ? from : to) = middle;
  }
  return from;
}

// The keys in [from, to), which hold the rank that is sought; `below` of all keys are less than
// `from`.
struct Bracket {
  int32_t from, to;
  int64_t below, inside;
};

// Where a rank is likely to be: to about 3.5 standard deviations, judged by vectors of keys taken
// evenly from the row.
static void likely_bracket(const int32_t* keys, int64_t positions, int64_t drawable, int64_t rank,
                           int32_t* from, int32_t* to) {
  int32_t sample[kSampleSize];
  const int64_t vectors = positions / kFloats;
  constexpr int64_t kVectors = kSampleSize / kFloats;
  for (int64_t i = 0; i < kVectors; ++i)
    store(sample + i * kFloats, load<Int>(keys + vectors * i / kVectors * kFloats));
  const double size = static_cast<double>(count_below(sample, kSampleSize, kInfiniteKey));
  const double share = static_cast<double>(rank) / static_cast<double>(drawable);
  const double expected = share * size,
               spread = 3.5 * __builtin_sqrt(expected * (1.0 - share)) + 3.0;
  if (expected > spread) *from = near_rank(sample, kSampleSize, expected - spread, 0, kInfiniteKey);
  if (expected + spread < size)
    *to = near_rank(sample, kSampleSize, expected + spread, *from, kInfiniteKey);
}

// Where it is likely to be inside a bracket in which the keys are spread evenly.
static void likely_inside(const Bracket& bracket, int64_t rank, int32_t* from, int32_t* to) {
  const double size = static_cast<double>(bracket.inside),
               width = static_cast<double>(bracket.to) - bracket.from;
  const double share = (static_cast<double>(rank - bracket.below) + 0.5) / size;
  const double spread = (2.5 * __builtin_sqrt(size * share * (1.0 - share)) + 2.0) / size;
  if (share > spread) *from = bracket.from + static_cast<int32_t>(width * (share - spread));
  if (share + spread < 1.0) {
    const int32_t guess = bracket.from + static_cast<int32_t>(width * (share + spread)) + 1;
    *to = guess < bracket.to ? guess : bracket.to;
  }
}

// The key of the given rank among a few.
static int32_t rank_of_few(const int32_t* keys, int64_t count, int64_t rank) {
  const int64_t padded = padded_to_vectors(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t below = count_below(keys, padded, keys[i]);
    if (below <= rank && rank < count_below(keys, padded, keys[i] + 1)) return keys[i];
  }
  return kNeverDrawn;
}

// How the next smaller bracket is guessed.
enum class Guess { sample, even_spread, halves };

// The key of a rank among `keys`, padded to whole vectors, given a bracket that holds it.
static int32_t key_of_rank(const int32_t* keys, int64_t positions, int64_t rank, Bracket bracket,
                           Guess guess, int32_t* scratch) {
  const int32_t* current =
      keys;  // holds every key of the bracket; `dropped` keys below them are no longer in it
  int32_t *next = scratch, *other = scratch + positions + kPadding;
  int64_t padded = padded_to_vectors(positions), dropped = 0;
  while (bracket.inside > kFew) {
    if (bracket.to - bracket.from == 1) return bracket.from;
    int32_t from = bracket.from, to = bracket.to;
    if (guess == Guess::sample) {
      likely_bracket(keys, positions, bracket.inside, rank, &from, &to);
    } else if (guess == Guess::halves) {
      to = from + (to - from) / 2;
    } else {
      likely_inside(bracket, rank, &from, &to);
    }
    int64_t below;
    const int64_t inside = collect(current, padded, from, to, next, &below),
                  before = bracket.inside;
    below += dropped;
    if (rank < below) {
      bracket.to = from;
      bracket.inside = below - bracket.below;
    } else if (rank >= below + inside) {
      bracket.inside -= below + inside - bracket.below;
      bracket.from = to;
      bracket.below = below + inside;
    } else {
      bracket = {from, to, below, inside};
      padded = padded_to_vectors(inside);
      dropped = below;
      current = next;
      next = other;
      other = const_cast<int32_t*>(current);
    }
    guess = 2 * bracket.inside > before
                ? Guess::halves
                : Guess::even_spread;  // after a guess that did not narrow it: 31 halvings at most
  }
  int64_t below;
  const int64_t inside = collect(current, padded, bracket.from, bracket.to, next, &below);
  return rank_of_few(next, inside, rank - bracket.below);
}

static int32_t threshold(const int32_t* keys, int64_t positions, int64_t drawable, int64_t k,
                         int32_t* scratch) {
  const Guess first = positions < 2 * kSampleSize ? Guess::halves : Guess::sample;
  return key_of_rank(keys, positions, k - 1, {0, kInfiniteKey, 0, drawable}, first, scratch);
}

static void mark(const int32_t* keys, int64_t positions, int32_t threshold, int64_t k,
                 uint8_t* mask) {
  int64_t marked = 0, l = 0;
  for (; l + kFloats <= positions; l += kFloats) {
    const LaneBits hidden = less_bits(load<Int>(keys + l), splat<Int>(threshold + 1));
    marked += __builtin_popcount(hidden);
    store_flags(mask + l, hidden);
  }
  for (; l < positions; ++l) marked += mask[l] = keys[l] <= threshold;
  for (; marked > k; --marked) {  // equal keys: the last ones give way
    do --l;
    while (keys[l] != threshold);
    mask[l] = 0;
  }
}

}  // namespace MAM_ISA
}  // namespace cpu
}  // namespace mam
