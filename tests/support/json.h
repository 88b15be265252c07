// A JSON reader for test data: enough for safetensors headers and the metadata inside them. It
// trusts its input.
#ifndef OUTBOARD_TESTS_SUPPORT_JSON_H_
#define OUTBOARD_TESTS_SUPPORT_JSON_H_

#include <cctype>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace outboard::testing {

/// A value; `true` is the number 1, `false` and `null` are 0. Objects and arrays keep their
/// members.
struct Json {
  double number = 0;
  std::string text;
  std::vector<Json> items;
  std::map<std::string, Json> members;

  [[nodiscard]] const Json& at(const std::string& key) const { return members.at(key); }
  [[nodiscard]] bool has(const std::string& key) const { return members.contains(key); }
};

/// Reads one value from the start of `text`; what follows it is ignored.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json read() {
    switch (peek()) {
      case '{':
        return read_object();
      case '[':
        return read_array();
      case '"':
        return read_text();
      case 't':
        return read_word("true", 1);
      case 'f':
        return read_word("false", 0);
      case 'n':
        return read_word("null", 0);
      default:
        return read_number();
    }
  }

 private:
  char peek() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
    if (at_ == text_.size()) throw std::runtime_error("JSON ends early");
    return text_[at_];
  }

  bool take(char expected) {
    if (peek() != expected) return false;
    ++at_;
    return true;
  }

  Json read_object() {
    Json result;
    take('{');
    while (!take('}')) {
      std::string key = (peek(), read_string());
      take(':');
      result.members.emplace(std::move(key), read());
      take(',');
    }
    return result;
  }

  Json read_array() {
    Json result;
    take('[');
    while (!take(']')) {
      result.items.push_back(read());
      take(',');
    }
    return result;
  }

  std::string read_string() {
    std::string result;
    for (++at_; text_.at(at_) != '"'; ++at_) {
      if (text_[at_] == '\\') ++at_;  // only quotes and backslashes are escaped in our files
      result += text_.at(at_);
    }
    ++at_;
    return result;
  }

  Json read_text() {
    Json result;
    result.text = read_string();
    return result;
  }

  Json read_word(std::string_view word, double number) {
    at_ += word.size();
    Json result;
    result.number = number;
    return result;
  }

  Json read_number() {
    size_t length = 0;
    Json result;
    result.number = std::stod(std::string(text_.substr(at_, 40)), &length);
    at_ += length;
    return result;
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_SUPPORT_JSON_H_
