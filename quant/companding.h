// The code of formats whose levels are squares: the number of the nearest square, in value, without
// a table and without an exact root. Shared by sym8 and root8 and by their device versions.
#ifndef OUTBOARD_QUANT_COMPANDING_H_
#define OUTBOARD_QUANT_COMPANDING_H_

#include <cmath>

#include "outboard/hd.h"

namespace outboard::quant {

/// A square root that may be off by 3.8e-4 of itself: only for results that do not depend on it.
OUTBOARD_HD float rough_sqrt(float a) {
#if defined(__CUDA_ARCH__)
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(a));
  return root;
#else
  return std::sqrt(a);
#endif
}

/// How many k >= 0 have a >= k^2 + k + 1/2, for a in [0, 66000]: the index of the square nearest to
/// a, ties up. k^2 + k + 1/2 is the midpoint of two squares and exact in fp32, so one comparison
/// settles what the root leaves open: the estimate is the result or one less, for every a and every
/// root within 3.8e-4.
OUTBOARD_HD float nearest_square(float a) {
  const float estimate = exact::rint(exact::fma(rough_sqrt(a), 0.999f, -0.5f));
  const float next = exact::add(exact::fma(estimate, estimate, estimate), 0.5f);
  return a >= next ? exact::add(estimate, 1.0f) : estimate;
}

}  // namespace outboard::quant

#endif  // OUTBOARD_QUANT_COMPANDING_H_
