// The catalogues as GoogleTest type lists: a new line joins every typed test by itself.
#ifndef OUTBOARD_TESTS_SUPPORT_CATALOGUE_H_
#define OUTBOARD_TESTS_SUPPORT_CATALOGUE_H_

#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <type_traits>

#include "outboard/rule.h"
#include "outboard/state_format.h"
#include "outboard_codecs.h"
#include "outboard_rules.h"

namespace outboard::testing {

template <class, class... Types>
struct WithoutFirst {
  using type = ::testing::Types<Types...>;
};

using AllRules = WithoutFirst<void
#define OUTBOARD_RULE(type, stem) , rules::type
#include "outboard/rules.def"
#undef OUTBOARD_RULE
                              >::type;

template <class Kept, class... Rules>
struct KeepNormRules;
template <class... Kept>
struct KeepNormRules<std::tuple<Kept...>> {
  using type = ::testing::Types<Kept...>;
};
template <class... Kept, class First, class... Rest>
struct KeepNormRules<std::tuple<Kept...>, First, Rest...>
    : KeepNormRules<
          std::conditional_t<NeedsNorms<First>, std::tuple<Kept..., First>, std::tuple<Kept...>>,
          Rest...> {};

/// The rules that need norms of whole parameters.
using NormRules = KeepNormRules<std::tuple<>
#define OUTBOARD_RULE(type, stem) , rules::type
#include "outboard/rules.def"
#undef OUTBOARD_RULE
                                >::type;

using AllFormats = WithoutFirst<void
#define OUTBOARD_FORMAT(type, stem) , quant::type
#include "outboard/formats.def"
#undef OUTBOARD_FORMAT
                                >::type;

/// Names typed tests after the rule or format.
struct CatalogueNames {
  template <class Type>
  static std::string GetName(int) {
    return std::string(Type::kName);
  }
};

}  // namespace outboard::testing

#endif  // OUTBOARD_TESTS_SUPPORT_CATALOGUE_H_
