// AVX-512 F, BW, VL, DQ: x86-64-v4.
#include "kernel.h"

namespace paged {

const Kernels KERNELS_AVX512 = {"avx512", Avx512::W, Avx512::scan, Kernel<Avx512, WideF32<Avx512>>::attend};

}  // namespace paged
