// The one exception type that crosses outboard's boundary, and the helper that formats its four
// parts.
#ifndef OUTBOARD_ERROR_H_
#define OUTBOARD_ERROR_H_

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace outboard {

/// Whose mistake an error is; the Python face turns this into ValueError, TypeError, MemoryError,
/// ...
enum class ErrorKind { kValue, kType, kMemory, kDevice, kFile, kState };

/// Raised for every failure. The message reads `[who] what, with the values; what to do`.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, std::string message)
      : std::runtime_error(std::move(message)), kind_(kind) {}
  [[nodiscard]] ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

/// Throws `Error` with `[who] ` and the concatenated `parts` as its message.
template <class... Parts>
[[noreturn]] void fail(ErrorKind kind, std::string_view who, const Parts&... parts) {
  std::ostringstream text;
  text << '[' << who << "] ";
  (text << ... << parts);
  throw Error(kind, text.str());
}

}  // namespace outboard

#endif  // OUTBOARD_ERROR_H_
