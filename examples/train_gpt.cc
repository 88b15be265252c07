// Trains a byte-level GPT on real text through the C++ API: the training of train_gpt.py with fewer
// options. With a GPU the optimizer state stays in host memory; without one the same SIMD update
// runs in place.
#include <outboard/outboard.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

namespace F = torch::nn::functional;
using torch::Tensor;

constexpr int64_t kVocabulary = 256;
constexpr double kHeldOut = 0.05;
constexpr int64_t kReports = 12;

struct Options {
  std::string data = "/usr/include";
  int64_t steps = 150;
  int64_t batch = 12;
  int64_t seq = 128;
  int64_t layers = 4;
  int64_t width = 192;
  double lr = 2e-3;
  bool offload_gradients = false;
  bool compare = false;
};

constexpr const char* kUsage =
    "usage: train_gpt [--data PATH] [--steps N] [--batch N] [--seq N] [--layers N] [--width N]\n"
    "                 [--lr X] [--offload-gradients] [--compare]\n"
    "--data: a file or folder of text; --compare: trains again with torch::optim::AdamW\n";

Options parse(int count, char** arguments) {
  Options options;
  const std::map<std::string, int64_t*> numbers = {{"--steps", &options.steps},
                                                   {"--batch", &options.batch},
                                                   {"--seq", &options.seq},
                                                   {"--layers", &options.layers},
                                                   {"--width", &options.width}};
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name == "--offload-gradients") {
      options.offload_gradients = true;
    } else if (name == "--compare") {
      options.compare = true;
    } else if (i + 1 < count && name == "--data") {
      options.data = arguments[++i];
    } else if (i + 1 < count && name == "--lr") {
      options.lr = std::stod(arguments[++i]);
    } else if (i + 1 < count && numbers.contains(name)) {
      *numbers.at(name) = std::stoll(arguments[++i]);
    } else {
      throw std::invalid_argument("unknown option " + name + "\n" + kUsage);
    }
  }
  for (const auto& [name, value] : numbers) {
    if (*value < 1) throw std::invalid_argument(name + " is below 1\n" + kUsage);
  }
  if (options.width % 32 != 0) throw std::invalid_argument("--width is no multiple of 32");
  return options;
}

// ---- Data ---------------------------------------------------------------------------------------

std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const bool is_text = bytes.find('\0') == std::string::npos;
  return is_text ? bytes : std::string();
}

/// Bytes to train on and bytes that training never sees.
struct Corpus {
  Tensor train;
  Tensor held_out;
};

Corpus load(const Options& options) {
  namespace fs = std::filesystem;
  constexpr size_t kEnough = size_t{8} << 20;
  std::string all;
  if (fs::is_directory(options.data)) {
    std::vector<fs::path> paths;
    for (const auto& entry : fs::recursive_directory_iterator(options.data)) {
      if (entry.is_regular_file()) paths.push_back(entry.path());
    }
    std::ranges::sort(paths);
    for (size_t i = 0; i < paths.size() && all.size() < kEnough; ++i) all += read_text(paths[i]);
  } else {
    all = read_text(options.data);
  }
  const auto length = static_cast<int64_t>(all.size());
  const auto held_out = static_cast<int64_t>(kHeldOut * static_cast<double>(length));
  if (held_out < options.seq + 2) {
    throw std::invalid_argument(options.data + " holds " + std::to_string(length) +
                                " bytes of text, which is too little; choose more with --data");
  }
  const Tensor bytes = torch::empty({length}, torch::kByte);
  std::memcpy(bytes.data_ptr(), all.data(), all.size());
  return {bytes.slice(0, 0, length - held_out), bytes.slice(0, length - held_out)};
}

/// Random windows; targets are the inputs one byte later.
struct Batch {
  Tensor inputs;
  Tensor targets;
};

Batch draw(const Tensor& bytes, const Options& options, torch::Generator& random,
           torch::Device device) {
  std::vector<Tensor> windows;
  const Tensor starts = torch::randint(bytes.size(0) - options.seq, {options.batch}, random);
  for (int64_t i = 0; i < options.batch; ++i) {
    const auto start = starts[i].item<int64_t>();
    windows.push_back(bytes.slice(0, start, start + options.seq + 1));
  }
  const Tensor all = torch::stack(windows).to(torch::kLong).to(device);
  return {all.slice(1, 0, -1).contiguous(), all.slice(1, 1).contiguous()};
}

// ---- Model --------------------------------------------------------------------------------------

torch::nn::Linear linear(int64_t in, int64_t out) {
  return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
}

/// Causal self-attention and a four times wider MLP, each behind a LayerNorm.
struct BlockImpl : torch::nn::Module {
  BlockImpl(int64_t width, int64_t heads) : heads_(heads) {
    attention_norm_ = register_module("attention_norm", norm(width));
    query_key_value_ = register_module("query_key_value", linear(width, 3 * width));
    attention_out_ = register_module("attention_out", linear(width, width));
    mlp_norm_ = register_module("mlp_norm", norm(width));
    mlp_in_ = register_module("mlp_in", linear(width, 4 * width));
    mlp_out_ = register_module("mlp_out", linear(4 * width, width));
  }

  static torch::nn::LayerNorm norm(int64_t width) {
    return torch::nn::LayerNorm(torch::nn::LayerNormOptions({width}));
  }

  Tensor forward(Tensor x) {
    x = x + attention_out_(attend(attention_norm_(x)));
    return x + mlp_out_(torch::gelu(mlp_in_(mlp_norm_(x))));
  }

 private:
  Tensor attend(const Tensor& x) {
    const auto parts =
        query_key_value_(x).view({x.size(0), x.size(1), 3, heads_, -1}).permute({2, 0, 3, 1, 4});
    const Tensor mixed = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, 0.0,
                                                          /*is_causal=*/true);
    return mixed.transpose(1, 2).flatten(-2);
  }

  int64_t heads_;
  torch::nn::LayerNorm attention_norm_{nullptr}, mlp_norm_{nullptr};
  torch::nn::Linear query_key_value_{nullptr}, attention_out_{nullptr}, mlp_in_{nullptr},
      mlp_out_{nullptr};
};
TORCH_MODULE(Block);

/// Embedding, positions, blocks, norm, and a head that is tied to the embedding.
struct GPTImpl : torch::nn::Module {
  explicit GPTImpl(const Options& options) {
    embedding_ = register_module("embedding", torch::nn::Embedding(kVocabulary, options.width));
    positions_ = register_module("positions", torch::nn::Embedding(options.seq, options.width));
    for (int64_t i = 0; i < options.layers; ++i) {
      blocks_.push_back(
          register_module("block" + std::to_string(i), Block(options.width, options.width / 32)));
    }
    norm_ = register_module("norm", BlockImpl::norm(options.width));
    const torch::NoGradGuard no_grad;
    for (auto& item : named_parameters()) {
      const bool is_last = item.key().find("_out") != std::string::npos;
      const double depth = std::sqrt(2.0 * static_cast<double>(options.layers));
      if (item.value().dim() >= 2) item.value().normal_(0, is_last ? 0.02 / depth : 0.02);
    }
  }

  Tensor loss(const Batch& batch) {
    Tensor x = embedding_(batch.inputs) + positions_->weight.slice(0, 0, batch.inputs.size(1));
    for (Block& block : blocks_) x = block(x);
    const Tensor logits = F::linear(norm_(x), embedding_->weight);
    return F::cross_entropy(logits.flatten(0, 1).to(torch::kFloat), batch.targets.flatten());
  }

 private:
  torch::nn::Embedding embedding_{nullptr}, positions_{nullptr};
  std::vector<Block> blocks_;
  torch::nn::LayerNorm norm_{nullptr};
};
TORCH_MODULE(GPT);

// ---- Training -----------------------------------------------------------------------------------

struct Run {
  std::vector<double> losses;
  double held_out = 0;
  double seconds = 0;
  std::vector<Tensor> weights;
};

GPT make_model(const Options& options, torch::Device device) {
  torch::manual_seed(0);
  GPT model(options);
  model->to(device, device.is_cuda() ? torch::kBFloat16 : torch::kFloat);
  return model;
}

/// Linear warm-up over a tenth of the steps, then a cosine to a tenth of the peak.
double rate(const Options& options, int64_t step) {
  const double warm_up = std::max<double>(1, static_cast<double>(options.steps) / 10);
  const double done = static_cast<double>(step + 1);
  if (done <= warm_up) return options.lr * done / warm_up;
  const double progress = (done - warm_up) / (static_cast<double>(options.steps) - warm_up);
  return options.lr * (0.55 + 0.45 * std::cos(progress * M_PI));
}

double held_out_loss(GPT& model, const Corpus& corpus, const Options& options,
                     torch::Device device) {
  const torch::NoGradGuard no_grad;
  auto random = at::make_generator<at::CPUGeneratorImpl>(1);
  double sum = 0;
  for (int i = 0; i < 8; ++i) {
    sum += model->loss(draw(corpus.held_out, options, random, device)).item<double>();
  }
  return sum / 8;
}

/// `clip_and_step` is what the two optimizers do differently.
template <class Optimizer, class ClipAndStep>
Run train(const char* name, const Options& options, const Corpus& corpus, GPT& model,
          Optimizer& optimizer, ClipAndStep clip_and_step) {
  const torch::Device device = model->parameters().front().device();
  auto random = at::make_generator<at::CPUGeneratorImpl>(0);
  Run run;
  const auto start = std::chrono::steady_clock::now();
  for (int64_t step = 0; step < options.steps; ++step) {
    optimizer.param_groups()[0].options().set_lr(rate(options, step));
    const Tensor loss = model->loss(draw(corpus.train, options, random, device));
    loss.backward();
    clip_and_step();
    optimizer.zero_grad();
    run.losses.push_back(loss.template item<double>());
    if (step % std::max<int64_t>(1, options.steps / kReports) == 0 || step + 1 == options.steps) {
      std::printf("%-8s step %5ld  loss %.4f\n", name, static_cast<long>(step + 1),
                  run.losses.back());
      std::fflush(stdout);
    }
  }
  run.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  run.held_out = held_out_loss(model, corpus, options, device);
  for (const Tensor& weight : model->parameters()) {
    run.weights.push_back(weight.detach().to(torch::kCPU, torch::kFloat, false, /*copy=*/true));
  }
  return run;
}

torch::optim::AdamWOptions base_options(const Options& options) {
  return torch::optim::AdamWOptions(options.lr).betas({0.9, 0.95}).weight_decay(0.1);
}

void print_table(const Options& options, const Run& run, const outboard::OffloadStats& stats,
                 const Run* plain) {
  constexpr double kMiB = 1 << 20;
  const double bytes = static_cast<double>(options.batch * options.seq * options.steps);
  const auto& memory = stats.memory;
  std::printf("\n%-32s %12s %12s\n", "", "outboard", plain != nullptr ? "torch" : "");
  const auto row = [&](const char* what, double ours, double theirs) {
    std::printf("%-32s %12.4f", what, ours);
    if (plain != nullptr) std::printf(" %12.4f", theirs);
    std::printf("\n");
  };
  row("last loss (nats per byte)", run.losses.back(), plain ? plain->losses.back() : 0);
  row("held-out loss (nats per byte)", run.held_out, plain ? plain->held_out : 0);
  row("thousand bytes per second", bytes / run.seconds / 1e3,
      plain ? bytes / plain->seconds / 1e3 : 0);
  std::printf("%-32s %12.1f\n", "host state (MiB)", static_cast<double>(memory.host_state) / kMiB);
  std::printf("%-32s %12.1f\n", "host weights and masters (MiB)",
              static_cast<double>(memory.host_weights + memory.host_masters) / kMiB);
  std::printf("%-32s %12.1f\n", "device state (MiB)",
              static_cast<double>(memory.device_state) / kMiB);
  std::printf("%-32s %12.2f\n", "exposed, last step (ms)", stats.step.exposed * 1e3);
}

void print_difference(const Run& run, const Run& plain) {
  double loss = 0;
  for (size_t i = 0; i < run.losses.size(); ++i) {
    loss = std::max(loss, std::abs(run.losses[i] - plain.losses[i]));
  }
  double weight = 0;
  for (size_t i = 0; i < run.weights.size(); ++i) {
    weight = std::max(weight, (run.weights[i] - plain.weights[i]).abs().max().item<double>());
  }
  std::printf("largest difference: loss %.3g, weight %.3g\n", loss, weight);
}

Run train_plain(const Options& options, const Corpus& corpus, torch::Device device) {
  GPT model = make_model(options, device);
  torch::optim::AdamW optimizer(model->parameters(), base_options(options));
  return train("torch", options, corpus, model, optimizer, [&] {
    torch::nn::utils::clip_grad_norm_(model->parameters(), 1.0);
    optimizer.step();
  });
}

void run_all(const Options& options) {
  const torch::Device device(torch::cuda::is_available() ? torch::kCUDA : torch::kCPU);
  const Corpus corpus = load(options);
  GPT model = make_model(options, device);
  int64_t count = 0;
  for (const Tensor& weight : model->parameters()) count += weight.numel();
  std::printf("%s: %ld bytes to train on; %ld parameters on %s\n", options.data.c_str(),
              static_cast<long>(corpus.train.size(0)), static_cast<long>(count),
              device.str().c_str());
  outboard::CPUOffloadOptimizer optimizer(
      model->parameters(), base_options(options),
      {.offload_gradients = options.offload_gradients, .max_gradient_norm = 1.0});
  const Run run = train("outboard", options, corpus, model, optimizer, [&] { optimizer.step(); });
  optimizer.synchronize();
  if (!options.compare) return print_table(options, run, optimizer.stats(), nullptr);
  const Run plain = train_plain(options, corpus, device);
  print_table(options, run, optimizer.stats(), &plain);
  print_difference(run, plain);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    run_all(parse(count, arguments));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
