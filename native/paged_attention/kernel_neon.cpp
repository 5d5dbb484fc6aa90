// NEON, as every aarch64 has it.
#include "kernel.h"

namespace paged {

const Kernels KERNELS_NEON = {"neon", Neon::W, Neon::scan, Kernel<Neon, WideF32<Neon>>::attend};

}  // namespace paged
