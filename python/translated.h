// Turns the library's errors into torch's, so that Python gets the exception class that fits. For
// files with bindings only.
#ifndef OUTBOARD_PYTHON_TRANSLATED_H_
#define OUTBOARD_PYTHON_TRANSLATED_H_

#include <c10/util/Exception.h>

#include "outboard/error.h"

namespace outboard {

/// What `call` returns. Python gets ValueError, TypeError, torch.OutOfMemoryError or RuntimeError
/// with the library's own message.
template <class Call>
auto translated(Call call) -> decltype(call()) {
  try {
    return call();
  } catch (const Error& error) {
    switch (error.kind()) {
      case ErrorKind::kValue:
        TORCH_CHECK_VALUE(false, error.what());
      case ErrorKind::kType:
        TORCH_CHECK_TYPE(false, error.what());
      case ErrorKind::kMemory:
        TORCH_CHECK_WITH(OutOfMemoryError, false, error.what());
      default:
        TORCH_CHECK(false, error.what());
    }
  }
  throw;  // not reached: every case above throws
}

}  // namespace outboard

#endif  // OUTBOARD_PYTHON_TRANSLATED_H_
