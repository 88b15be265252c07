// The smallest program that uses the installed library: it prints the rules that the library was
// built with, their states and their hyper-parameters. Training is shown by examples/train_gpt.cc.
#include <outboard/outboard.h>

#include <cstddef>
#include <cstdio>

namespace {

void print_rule(const outboard::RuleInfo& rule) {
  std::printf("%.*s: keeps", static_cast<int>(rule.name.size()), rule.name.data());
  for (const outboard::StateInfo& state : rule.states) {
    std::printf(" %.*s", static_cast<int>(state.key.size()), state.key.data());
  }
  std::printf("; set by");
  for (const outboard::HyperParameter& hyper : rule.hyper_parameters) {
    std::printf(" %.*s=%g", static_cast<int>(hyper.key.size()), hyper.key.data(),
                hyper.default_value);
  }
  std::printf("\n");
}

}  // namespace

int main() {
  for (std::size_t index = 0; index < outboard::kRuleCount; ++index) {
    print_rule(outboard::rule_info(static_cast<outboard::RuleId>(index)));
  }
  return 0;
}
