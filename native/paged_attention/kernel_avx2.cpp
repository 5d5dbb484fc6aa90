// AVX2, FMA, F16C: x86-64-v3.
#include "kernel.h"

namespace paged {

const Kernels KERNELS_AVX2 = {"avx2", Avx2::W, Avx2::scan, Kernel<Avx2, WideF32<Avx2>>::attend};

}  // namespace paged
