// Rows of numbers to tiles in which the tokens of a column lie beside each other, and back.
#pragma once
#include "activations.h"

namespace prunus {
inline namespace PRUNUS_ISA {

// tile[column][W] from x[token][column]; absent tokens are zero. Returns whether all are finite.
template <class S, int W>
bool gather(const S* x, int64_t stride, int64_t tokens, int64_t columns, S* tile) {
  constexpr int N = lanes<S, W>();
  using V = Vec<S, N>;
  V odd{};
  for (int64_t t0 = 0; t0 < W; t0 += N) {
    const int64_t own = tokens - t0 < N ? (tokens - t0 < 0 ? 0 : tokens - t0) : N;
    int64_t c = 0;
    for (; c + N <= columns; c += N) {
      V v[N];
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) v[i] = i < own ? load<V>(x + (t0 + i) * stride + c) : V{};
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) odd += v[i] * S(0);
      transpose<N>(v);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) store(tile + (c + i) * W + t0, v[i]);
    }
    for (; c < columns; ++c) {
      S line[N] = {};
      for (int i = 0; i < own; ++i) line[i] = x[(t0 + i) * stride + c];
      const V v = load<V>(line);
      odd += v * S(0);
      store(tile + c * W + t0, v);
    }
  }
  return finite(odd);
}

// y[token][row] = activation(tile[row][W] + bias + residual), for the rows and tokens there are.
template <class S> struct Ending {
  const S* bias;
  const S* residual;
  int64_t residual_stride;
  int32_t activation;
};

template <class S, int W>
void scatter(const S* tile, int64_t rows, int64_t tokens, S* y, int64_t stride,
             const Ending<S>& end) {
  constexpr int N = lanes<S, W>();
  using V = Vec<S, N>;
  for (int64_t t0 = 0; t0 < tokens; t0 += N) {
    const int64_t own = tokens - t0 < N ? tokens - t0 : N;
    for (int64_t r = 0; r < rows; r += N) {
      const int64_t wide = rows - r < N ? rows - r : N;
      V v[N], bias{};
      if (end.bias) std::memcpy(&bias, end.bias + r, wide * sizeof(S));
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) v[i] = load<V>(tile + (r + i) * W + t0);
      transpose<N>(v);
      for (int i = 0; i < own; ++i) {
        V sum = v[i] + bias, more{};
        const S* residual = end.residual ? end.residual + (t0 + i) * end.residual_stride + r : nullptr;
        if (wide == N) {
          if (residual) sum += load<V>(residual);
          store(y + (t0 + i) * stride + r, activated<S, N>(sum, end.activation));
        } else {
          if (residual) std::memcpy(&more, residual, wide * sizeof(S));
          sum = activated<S, N>(V(sum + more), end.activation);
          std::memcpy(y + (t0 + i) * stride + r, &sum, wide * sizeof(S));
        }
      }
    }
  }
}

}  // namespace PRUNUS_ISA
}  // namespace prunus
