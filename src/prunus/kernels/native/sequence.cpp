// A sequence of steps, from its inputs to its outputs, in memory that the thread keeps.
#include <new>

#include "abi.h"
#include "planes.h"
#include "scratch.h"

namespace prunus {
inline namespace PRUNUS_ISA {
namespace {

thread_local Scratch memory;

bool run(const Step& s, const Places& place) {
  switch (s.kind) {
    case VIEWS: return views(s, place);
    case CONVOLUTION: return convolution(s, place);
    case DEPTHWISE: return depthwise(s, place);
    case MAXIMUM: return maximum(s, place);
    case GRADIENT: return weights_gradient(s, place);
    case MEAN: return mean(s, place);
    default: return sum(s, place);
  }
}

}  // namespace
}  // namespace PRUNUS_ISA
}  // namespace prunus

PRUNUS_API int32_t prunus_sequence(const Sequence* q) {
  using namespace prunus;
  try {
    float* own = memory.room<float>(size_t(q->room));
    const auto at = [&](int32_t base, int64_t offset) { return (base ? q->bases[base - 1] : own) + offset; };
    for (int64_t i = 0; i < q->count; ++i) {
      const Step& s = q->steps[i];
      const bool held = s.number >= 0;
      const Places place{at(s.x_base, s.x),
                         s.more_base < 0 ? nullptr : at(s.more_base, s.more),
                         at(s.y_base, s.y),
                         held ? q->layouts[s.number] : nullptr,
                         held ? q->values[s.number] : nullptr,
                         held ? q->biases[s.number] : nullptr,
                         q->threads};
      if (!run(s, place)) return NOT_FINITE;
    }
    return DONE;
  } catch (const std::bad_alloc&) {
    return REFUSED;
  }
}
