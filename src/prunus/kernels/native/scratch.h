// Memory that a thread keeps from call to call: fresh pages would cost more than many products.
#pragma once
#include <cstdlib>
#include <new>

#include "vec.h"

namespace prunus {
inline namespace PRUNUS_ISA {

class Scratch {
 public:
  ~Scratch() { std::free(at_); }
  template <class S> S* room(size_t count) {
    const size_t bytes = (count * sizeof(S) + 127) / 64 * 64;
    if (bytes > size_) {
      std::free(at_);
      size_ = 0;
      at_ = nullptr;
      if (posix_memalign(&at_, 64, bytes) != 0) throw std::bad_alloc();
      size_ = bytes;
    }
    return static_cast<S*>(at_);
  }

 private:
  void* at_ = nullptr;
  size_t size_ = 0;
};

}  // namespace PRUNUS_ISA
}  // namespace prunus
