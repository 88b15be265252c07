// State formats by name, as specs take them.
#ifndef OUTBOARD_TESTS_OFFLOAD_SUPPORT_FORMATS_H_
#define OUTBOARD_TESTS_OFFLOAD_SUPPORT_FORMATS_H_

#include <array>
#include <string_view>

#include "outboard/state_format.h"
#include "outboard/types.h"

namespace outboard::testing {

/// The formats of a signed state and of a second moment.
inline std::array<StateFormat, kMaxStates> formats_named(std::string_view name) {
  const StateFormats named = state_formats_named(name);
  return {named.signed_state, named.unsigned_state};
}

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_OFFLOAD_SUPPORT_FORMATS_H_
