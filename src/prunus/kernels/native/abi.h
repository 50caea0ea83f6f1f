// The functions that Python calls: plain pointers and numbers, checked by the caller.
#pragma once
#include <cstdint>

#include "steps.h"

#define PRUNUS_API extern "C" __attribute__((visibility("default")))

enum Status : int32_t { DONE = 0, NOT_FINITE = 1, REFUSED = 2 };

// y = activation(x · Wᵀ + bias + residual); sizes and strides in elements.
struct Product {
  const int32_t* layout;
  const void* values;
  const void* x;         // [tokens][cols]
  void* y;               // [tokens][rows]
  const void* bias;      // [rows] or nullptr
  const void* residual;  // [tokens][rows] or nullptr
  int64_t tokens, x_stride, y_stride, residual_stride;
  int32_t type;          // of the values
  int32_t activation;
  int32_t threads;
  int32_t unused;
};

// gradient[i] = Σ over tokens of dy[token][row of i] · x[token][column of i], in the layout's order.
struct Gradient {
  const int32_t* layout;
  void* gradient;
  const void* x;
  const void* dy;
  int64_t tokens, x_stride, dy_stride;
  int32_t type, threads;
};

// One layer and direction of an LSTM (kind 0) or a GRU (1) over all its steps. h and c are those
// before the first step, and become those after the last.
struct Recurrent {
  const int32_t* layout;  // of the recurrent weight, [4 or 3 times hidden][hidden]
  const void* values;
  const float* gates;     // [steps][batch][4 or 3 times hidden]: what the inputs give, with biases
  const float* bias;      // of the recurrent product, or nullptr; an LSTM's is in the gates
  float* h;               // [batch][hidden]
  float* c;               // likewise, of an LSTM
  float* out;             // h of every step
  int64_t steps, batch, hidden, out_step, out_batch;
  int32_t kind, reverse, type, threads;
};

// What is packed: a matrix by its rows, in the order of its columns.
struct Pattern {
  const int64_t* first;   // [rows + 1]
  const int32_t* column;  // [stored], rising within a row
  int64_t rows, cols;
};

struct Shape {
  int32_t side, height, width, band, panel;
};

PRUNUS_API int32_t prunus_version();
PRUNUS_API const char* prunus_name();            // of the instruction set
PRUNUS_API int32_t prunus_supported(const char* name);  // whether this processor has one
PRUNUS_API const char* prunus_check(const int32_t* layout, int64_t length);

// Write a layout and the natural number of each of its values (-1 = padding, zero). They return
// the length of the layout, or -1 where `room` does not suffice; `values` gets that of the values.
// Slices are of the form 0 (SLICES), 1 (COLUMNS) or 2 (WINDOWS).
PRUNUS_API int64_t prunus_tiles(const Pattern*, const Shape*, int32_t* layout, int64_t room,
                                int32_t* order, int64_t order_room, int64_t* values);
PRUNUS_API int64_t prunus_mask(const Pattern*, int32_t* layout, int64_t room);
PRUNUS_API int64_t prunus_slices(const Pattern*, int32_t form, int32_t* layout, int64_t room,
                                 int32_t* order, int64_t order_room, int64_t* values);

// The matrix, [rows][cols] of float (of double for F64) that are zero.
PRUNUS_API void prunus_dense(const int32_t* layout, const void* values, int32_t type, void* out);
PRUNUS_API int32_t prunus_product(const Product*);
PRUNUS_API int32_t prunus_gradient(const Gradient*);
PRUNUS_API int32_t prunus_recurrent(const Recurrent*);
// packed[i] = order[i] < 0 ? 0 : values[order[i]]; REFUSED where there are only n values.
PRUNUS_API int32_t prunus_gather(const int32_t* order, int64_t count, const void* values, int64_t n,
                                 void* packed, int32_t type);
// values[order[i]] = packed[i] for every order[i] >= 0.
PRUNUS_API int32_t prunus_scatter(const int32_t* order, int64_t count, const void* packed, int64_t n,
                                  void* values, int32_t type);

// Sequences of convolutions; see steps.h. prunus_offsets gives every index of a layout of tiles its
// column's offset, prunus_vectors how many vectors of so many rows a tile has at most.
PRUNUS_API int32_t prunus_sequence(const Sequence*);
PRUNUS_API void prunus_offsets(const int32_t* layout, const int32_t* column, int32_t* offset);
PRUNUS_API int32_t prunus_vectors(int32_t rows);
