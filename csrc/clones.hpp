// VQKIT_CLONES before a function compiles it for several instruction sets, of which the loader picks one. For loops over independent
// elements only: without contraction and without reductions all of them give the same bits.
#pragma once

#include <cstdlib>

#if defined(VQKIT_X86) && defined(__GLIBC__)
#define VQKIT_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VQKIT_CLONES
#endif
