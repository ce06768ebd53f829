#include "isa.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace vqkit {

namespace {

bool available(Isa isa) {
#ifdef VQKIT_X86
  if (isa == Isa::avx512) return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return isa == Isa::portable;
}

}  // namespace

const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
}

Isa choose_isa() {
  const char* wanted = std::getenv("VQKIT_ISA");
  const bool any = wanted == nullptr || *wanted == '\0';
  for (Isa isa : {Isa::avx512, Isa::avx2, Isa::portable}) {
    if (any && available(isa)) return isa;
    if (!any && std::string(wanted) == isa_name(isa)) {
      if (available(isa)) return isa;
      throw std::invalid_argument(std::string("VQKIT_ISA=") + wanted + ": this processor does not have it");
    }
  }
  throw std::invalid_argument(std::string("VQKIT_ISA must be portable, avx2 or avx512, got ") + wanted);
}

bool multiplies_bfloat16() {
#ifdef VQKIT_BF16
  return choose_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace vqkit
