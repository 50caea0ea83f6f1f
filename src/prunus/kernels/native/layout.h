// How a sparse matrix lies in memory: one array of int32, which says itself what it holds.
//
// The first HEADER numbers are the head; offsets in it count int32 from the array's start. Values
// lie apart, in the order of the layout, so that training packs new ones into the same layout.
#pragma once
#include <cstdint>

namespace prunus {

constexpr int32_t MAGIC = 0x5053504d, HEADER = 32;

enum Kind : int32_t { TILES = 1, MASK = 2, SLICES = 3, COLUMNS = 4, WINDOWS = 5 };
constexpr int32_t SHORT = 4096;
constexpr int32_t WINDOW = 32;  // columns that a step of WINDOWS looks at, from a multiple of 16 on
enum Type : int32_t { F32 = 0, F64 = 1, BF16 = 2, I8 = 3 };

struct Head {
  int32_t magic;
  int32_t kind;
  int32_t length;       // of the whole array
  int32_t rows, cols;   // of the matrix
  int32_t values;       // elements that the array of values must have at least
  int32_t stored;       // of these, those of the matrix; padding is zero
  int32_t scales;       // offset of a float for each row, or 0: int8 values are multiplied with it
  // TILES
  int32_t side;         // rows that run side by side in a group
  int32_t height;       // rows of a block, which share a column: 1 or 4
  int32_t width;        // tokens of a whole tile
  int32_t band;         // columns whose activations stay in the first cache
  int32_t panel;        // rows that are done before the next begin, a multiple of 16
  int32_t bands, panels, groups;
  int32_t ranges;       // offset, [panels][bands][3]: first group, first single group, end
  int32_t group;        // offset, [groups][3]: first value, steps, offset of the first row's number
  int32_t row;          // offset, [slots]: rows of the groups
  int32_t slots;
  int32_t index;        // offset of uint16 [values / height]: column inside the band
  // MASK: offsets of the first value of each row, [rows + 1], and of its words, [rows][words][2]
  int32_t first, word, words;
  // The others: `first` counts steps of slices [slices + 1], `row` their rows, [slices][16] (rows
  // alone are without a number, -1), `index` uint16: [steps][16], of COLUMNS [steps]; of WINDOWS
  // uint8 [steps][16], counted from where the step's window begins, which is `word` of
  // uint16 [steps / words]
  int32_t slices;
  // WINDOWS, of at most SHORT columns: values that few rows of a slice would have shared a step
  // with stand alone, behind all others. `alone` counts them by slices [slices + 1], `place` is
  // uint16 [alone]: row of the slice · SHORT + column
  int32_t alone, place;
  int32_t rest[HEADER - 27];
};
static_assert(sizeof(Head) == HEADER * sizeof(int32_t), "the head is part of the format");

inline const Head& head_of(const int32_t* layout) { return *reinterpret_cast<const Head*>(layout); }

// What is wrong with a layout of so many numbers, in words; nullptr where nothing is. What passes
// can be computed with any values without touching memory that is not the caller's.
const char* check(const int32_t* layout, int64_t length);

}  // namespace prunus
