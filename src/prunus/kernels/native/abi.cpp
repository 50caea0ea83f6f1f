#include "abi.h"

#include <cstring>
#include <new>

#include "layout.h"
#include "vec.h"

namespace prunus {
inline namespace PRUNUS_ISA {
template <class S> int32_t product_of_tiles(const Product&);
template <class S> void gradient_of_tiles(const Gradient&);
int32_t product_of_single(const Product&);
}  // namespace PRUNUS_ISA
}  // namespace prunus

#define TEXT(name) TEXT_(name)
#define TEXT_(name) #name

PRUNUS_API int32_t prunus_version() { return 2; }

PRUNUS_API const char* prunus_name() { return TEXT(PRUNUS_ISA); }

PRUNUS_API int32_t prunus_supported(const char* name) {
  if (!std::strcmp(name, "portable")) return 1;
#if defined(__x86_64__)
  if (!std::strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!std::strcmp(name, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("fma");
#elif defined(__aarch64__)
  if (!std::strcmp(name, "neon")) return 1;
#endif
  return 0;
}

PRUNUS_API int32_t prunus_product(const Product* p) {
  try {
    if (prunus::head_of(p->layout).kind != prunus::TILES) return prunus::product_of_single(*p);
    PRUNUS_DOUBLE(if (p->type == prunus::F64) return prunus::product_of_tiles<double>(*p);)
    return prunus::product_of_tiles<float>(*p);
  } catch (const std::bad_alloc&) {
    return REFUSED;
  }
}

PRUNUS_API int32_t prunus_gradient(const Gradient* g) {
  try {
    PRUNUS_DOUBLE(if (g->type == prunus::F64) return prunus::gradient_of_tiles<double>(*g), DONE;)
    prunus::gradient_of_tiles<float>(*g);
    return DONE;
  } catch (const std::bad_alloc&) {
    return REFUSED;
  }
}
