// The instruction set that computes: the best that the processor has, or the one that VQKIT_ISA names.
#pragma once

namespace vqkit {

enum class Isa { portable, avx2, avx512, amx };

// Reads VQKIT_ISA (portable, avx2, avx512, amx; unset or empty: the best) at every call; throws std::invalid_argument
// for another name and for one that this processor or this build does not have.
Isa choose_isa();

// Whether the chosen instruction set is AVX-512 with products of bfloat16 that are worth it.
bool multiplies_bfloat16();

const char* isa_name(Isa isa);

}  // namespace vqkit
