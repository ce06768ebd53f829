#include "isa.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

#ifdef VQKIT_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vqkit {

namespace {

#ifdef VQKIT_AMX
// Products of bfloat16 by AMX: the processor must have them and the system must save the registers, which this asks it to.
bool matrix_unit() {
  constexpr unsigned bfloat16 = 1u << 22, tiles = 1u << 24;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & bfloat16) || !(d & tiles)) return false;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bf16")) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#endif

bool available(Isa isa) {
#ifdef VQKIT_AMX
  if (isa == Isa::amx) {
    static const bool granted = matrix_unit();
    return granted;
  }
#endif
#ifdef VQKIT_X86
  if (isa == Isa::avx512) return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return isa == Isa::portable;
}

}  // namespace

const char* isa_name(Isa isa) {
  return isa == Isa::amx ? "amx" : isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
}

Isa choose_isa() {
  const char* wanted = std::getenv("VQKIT_ISA");
  const bool any = wanted == nullptr || *wanted == '\0';
  for (Isa isa : {Isa::amx, Isa::avx512, Isa::avx2, Isa::portable}) {
    if (any && available(isa)) return isa;
    if (!any && std::string(wanted) == isa_name(isa)) {
      if (available(isa)) return isa;
      throw std::invalid_argument(std::string("VQKIT_ISA=") + wanted + ": this processor does not have it");
    }
  }
  throw std::invalid_argument(std::string("VQKIT_ISA must be portable, avx2, avx512 or amx, got ") + wanted);
}

bool multiplies_bfloat16() {
#ifdef VQKIT_BF16
  // Intel's are half as fast as its products of floats, and it has the matrix unit
  return choose_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16") && !__builtin_cpu_is("intel");
#else
  return false;
#endif
}

}  // namespace vqkit
