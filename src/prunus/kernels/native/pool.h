// Threads of our own, asleep while there is nothing to do.
#pragma once
#include <cstdint>

#include "vec.h"

namespace prunus {
inline namespace PRUNUS_ISA {

// Calls work(context, i) for every i below count, on at most `threads` threads, this one included.
// Where another caller has the threads, this one does its work alone; what is computed is the same.
void parallel(int64_t count, int threads, void (*work)(void*, int64_t), void* context);

template <class F> void parallel(int64_t count, int threads, F& f) {
  parallel(count, threads, [](void* at, int64_t i) { (*static_cast<F*>(at))(i); }, &f);
}

}  // namespace PRUNUS_ISA
}  // namespace prunus
