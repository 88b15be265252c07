// Checkpoints of the libtorch face: exact resume, torch::save, and files that are cut, changed, or
// of another model.
#include <gmock/gmock.h>
#include <torch/serialize.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <sstream>

#include "outboard/error.h"
#include "training.h"

namespace outboard {
namespace {

using torch::optim::AdagradOptions;
using torch::optim::AdamOptions;
using torch::optim::AdamWOptions;
using torch::optim::RMSpropOptions;
using torch::optim::SGDOptions;

/// A path of its own for each test; the file is removed afterwards.
class TemporaryFile {
 public:
  TemporaryFile() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string(test->test_suite_name()) + "." + test->name() + ".pt";
    std::ranges::replace(name, '/', '.');
    path_ = (std::filesystem::path(testing::TempDir()) / name).string();
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string read() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
  }

 private:
  std::string path_;
};

class CheckpointTest : public OnEveryPlace {};
OUTBOARD_ON_EVERY_PLACE(CheckpointTest);

using Make = std::function<std::unique_ptr<CPUOffloadOptimizer>(const Training&)>;

// Saves after 3 steps, goes on to 8; a second run from the file and the weights must have the same
// bits.
void expect_exact_resume(Place place, at::ScalarType type, const Make& make) {
  const TemporaryFile file;
  const Training whole(place, type);
  const auto optimizer = make(whole);
  whole.run(*optimizer, 0, 3);
  optimizer->save_checkpoint(file.path());
  const Training second(place, type);
  {
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < second.parameters.size(); ++i) {
      at::Tensor weight = second.parameters[i];
      weight.copy_(whole.parameters[i]);
    }
  }
  const auto resumed = make(second);
  resumed->load_checkpoint(file.path());
  whole.run(*optimizer, 3, 8);
  second.run(*resumed, 3, 8);
  optimizer->synchronize();
  expect_equal(second.parameters, whole.parameters, "resumed");
  for (size_t i = 0; i < whole.parameters.size(); ++i) {
    const auto want = optimizer->state_of(whole.parameters[i]);
    const auto got = resumed->state_of(second.parameters[i]);
    ASSERT_EQ(got.size(), want.size());
    for (const auto& [key, value] : want) {
      EXPECT_TRUE(at::equal(got.at(key).cpu(), value.cpu())) << key << " of parameter " << i;
    }
  }
}

template <class Base>
Make native(Place place, const Base& base, const std::string& state_format = "fp32",
            const std::string& master = "auto") {
  return [=](const Training& training) {
    CPUOffloadOptions options = options_for(place);
    options.state_format = state_format;
    options.master = master;
    return std::make_unique<CPUOffloadOptimizer>(training.parameters, base, options);
  };
}

TEST_P(CheckpointTest, AdamWResumesBitByBit) {
  const AdamWOptions base = AdamWOptions(1e-2).weight_decay(0.1);
  expect_exact_resume(GetParam(), at::kFloat, native(GetParam(), base));
  expect_exact_resume(GetParam(), at::kBFloat16, native(GetParam(), base));
  expect_exact_resume(GetParam(), at::kBFloat16, native(GetParam(), base, "bf16"));
  expect_exact_resume(GetParam(), at::kBFloat16, native(GetParam(), base, "8bit", "split8"));
  expect_exact_resume(GetParam(), at::kHalf, native(GetParam(), base));
}

TEST_P(CheckpointTest, FactoredSecondMomentsResumeBitByBit) {
  for (const char* format : {"fp32", "8bit"}) {
    expect_exact_resume(GetParam(), at::kBFloat16, [&](const Training& training) {
      CPUOffloadOptions options = options_for(GetParam());
      options.state_format = format;
      options.min_quantized_elements = 16;
      options.factored_second_moment = true;
      return std::make_unique<CPUOffloadOptimizer>(training.parameters, AdamWOptions(1e-2),
                                                   options);
    });
  }
}

TEST_P(CheckpointTest, OtherRulesResumeBitByBit) {
  const AdamOptions adam = AdamOptions(1e-2).amsgrad(true);
  expect_exact_resume(GetParam(), at::kFloat, native(GetParam(), adam));
  expect_exact_resume(GetParam(), at::kFloat, native(GetParam(), SGDOptions(1e-2)));
  expect_exact_resume(GetParam(), at::kBFloat16,
                      native(GetParam(), SGDOptions(1e-2).momentum(0.9)));
  expect_exact_resume(GetParam(), at::kBFloat16, native(GetParam(), LionOptions(1e-2)));
  expect_exact_resume(GetParam(), at::kFloat,
                      native(GetParam(), AdagradOptions(1e-2).initial_accumulator_value(0.5)));
  expect_exact_resume(GetParam(), at::kFloat,
                      native(GetParam(), RMSpropOptions(1e-2).centered(true).momentum(0.5)));
  expect_exact_resume(GetParam(), at::kBFloat16,
                      native(GetParam(), AdEMAMixOptions(1e-2).t_alpha(6).t_beta3(6)));
  expect_exact_resume(GetParam(), at::kFloat,
                      native(GetParam(), LAMBOptions(1e-2).weight_decay(0.1).max_unorm(0.5)));
  expect_exact_resume(GetParam(), at::kBFloat16,
                      native(GetParam(), LARSOptions(1.0).weight_decay(0.1).nesterov(true)));
}

TEST_P(CheckpointTest, AClassFromAFactoryResumesBitByBit) {
  expect_exact_resume(GetParam(), at::kFloat, [&](const Training& training) {
    return std::make_unique<CPUOffloadOptimizer>(
        training.parameters,
        [](std::vector<torch::Tensor> tensors) {
          return std::make_unique<torch::optim::RMSprop>(std::move(tensors),
                                                         RMSpropOptions(1e-2).momentum(0.5));
        },
        options_for(GetParam()));
  });
}

TEST(Checkpoint, LoadRestoresTheGroupsOptions) {
  const TemporaryFile file;
  const Training training(Place::kInPlace);
  CPUOffloadOptimizer optimizer(training.parameters, AdamWOptions(1e-2));
  training.run(optimizer, 0, 1);
  optimizer.param_groups()[0].options().set_lr(0.125);
  optimizer.save_checkpoint(file.path());
  optimizer.param_groups()[0].options().set_lr(1);
  optimizer.load_checkpoint(file.path());
  EXPECT_EQ(optimizer.param_groups()[0].options().get_lr(), 0.125);
}

TEST(Checkpoint, TorchSaveAndLoadWork) {
  const Training whole(Place::kSimulated);
  const Training second(Place::kSimulated);
  const auto make = native(Place::kSimulated, AdamWOptions(1e-2));
  const auto optimizer = make(whole);
  const auto resumed = make(second);
  whole.run(*optimizer, 0, 3);
  std::stringstream stream;
  torch::save(*optimizer, stream);
  second.run(*resumed, 0, 3);
  resumed->load_checkpoint([&] {  // something else in between
    static const TemporaryFile file;
    make(Training(Place::kSimulated))->save_checkpoint(file.path());
    return file.path();
  }());
  EXPECT_TRUE(resumed->state_of(second.parameters[0]).empty());
  torch::load(*resumed, stream);
  whole.run(*optimizer, 3, 5);
  second.run(*resumed, 3, 5);
  expect_equal(second.parameters, whole.parameters, "after torch::load");
}

/// An optimizer with a checkpoint of its own, and what it looks like now.
struct Saved {
  Saved() : optimizer(training.parameters, AdamWOptions(1e-2)) {
    training.run(optimizer, 0, 2);
    optimizer.save_checkpoint(file.path());
    bytes = file.read();
    training.run(optimizer, 2, 4);
    state_now = state();
  }
  std::vector<at::Tensor> state() {
    std::vector<at::Tensor> result;
    for (const at::Tensor& parameter : training.parameters) {
      for (const auto& [key, value] : optimizer.state_of(parameter)) {
        result.push_back(value.clone());
      }
    }
    return result;
  }
  /// Loads `changed`; whether it was refused. Checks that a refusal has changed nothing.
  bool is_refused(const std::string& changed, const std::string& what) {
    file.write(changed);
    try {
      optimizer.load_checkpoint(file.path());
    } catch (const Error&) {
      expect_equal(state(), state_now, what);
      return true;
    }
    return false;
  }

  TemporaryFile file;
  Training training{Place::kInPlace};
  CPUOffloadOptimizer optimizer;
  std::string bytes;
  std::vector<at::Tensor> state_now;
};

TEST(Checkpoint, TruncatedFilesAreRefused) {
  Saved saved;
  for (size_t length = 0; length < saved.bytes.size(); length += 97) {
    ASSERT_TRUE(saved.is_refused(saved.bytes.substr(0, length), "cut to " + std::to_string(length)))
        << length;
  }
  EXPECT_TRUE(saved.is_refused(saved.bytes.substr(0, saved.bytes.size() - 1), "one byte less"));
  EXPECT_TRUE(saved.is_refused(saved.bytes + '\0', "one byte more"));
}

// A flipped bit is refused, or lies where it means nothing (padding) and the saved state is loaded.
TEST(Checkpoint, FlippedBitsAreRefusedOrMeanNothing) {
  Saved saved;
  ASSERT_FALSE(saved.is_refused(saved.bytes, "as it was"));
  const std::vector<at::Tensor> loaded = saved.state();
  saved.state_now = loaded;
  size_t refused = 0;
  size_t tried = 0;
  for (size_t i = 0; i < saved.bytes.size(); i += 29, ++tried) {
    std::string changed = saved.bytes;
    changed[i] = static_cast<char>(changed[i] ^ (1 << (i % 8)));
    if (saved.is_refused(changed, "flipped in byte " + std::to_string(i))) {
      ++refused;
    } else {
      expect_equal(saved.state(), loaded, "flipped in byte " + std::to_string(i));
    }
  }
  EXPECT_GT(refused, tried * 9 / 10);
}

TEST(Checkpoint, AnotherModelIsRefused) {
  Saved saved;
  Training other(Place::kInPlace);
  other.parameters[1] = other.parameters[1].detach().slice(0, 0, 299).clone();
  other.parameters[1].requires_grad_(true);
  CPUOffloadOptimizer optimizer(other.parameters, AdamWOptions());
  EXPECT_THROW(optimizer.load_checkpoint(saved.file.path()), Error);
  CPUOffloadOptimizer fewer({saved.training.parameters[0]}, AdamWOptions());
  EXPECT_THROW(fewer.load_checkpoint(saved.file.path()), Error);
  CPUOffloadOptimizer adam(saved.training.parameters, AdamOptions());
  EXPECT_THROW(adam.load_checkpoint(saved.file.path()), Error);
  CPUOffloadOptimizer lion(saved.training.parameters, LionOptions());
  EXPECT_THROW(lion.load_checkpoint(saved.file.path()), Error);
  EXPECT_TRUE(lion.state_of(saved.training.parameters[0]).empty());
}

TEST(Checkpoint, MissingFilesAndFoldersSaySo) {
  const Training training(Place::kInPlace);
  CPUOffloadOptimizer optimizer(training.parameters, AdamWOptions());
  EXPECT_THROW(optimizer.load_checkpoint("/nonexistent/file.pt"), Error);
  EXPECT_THROW(optimizer.load_checkpoint("/"), Error);
  EXPECT_THROW(optimizer.save_checkpoint("/nonexistent/file.pt"), Error);
}

}  // namespace
}  // namespace outboard
