// The cost model: seconds of an iteration with given placements and schedule. Choosing among them
// is plan.cc's, counting bytes plan_bytes.cc's.
//
// Per element, with g = bytes of a weight or gradient, m = bytes of its master beside it, s = bytes
// of state:
//
//   placement   down  up   through host memory (CPU)      through device memory (GPU)
//   resident    0     0    0                              t
//   host        g     g    t                              0
//   streamed    m+s   m+s  0                              t
//   t = g + (what holds the full-precision weight, read and written) + 2 s
//
// Work on a set of elements takes W = max(link, CPU, host memory):
//
//   link        = least / duplex + (most - least) / one way      of the bytes down and up
//   CPU         = elements x measured seconds per element, else t / host bandwidth
//   host memory = min(CPU, 1.25 t / host bandwidth) + 2 min(down + up, t) / host bandwidth
//
// The first term is the kernel's own traffic (a kernel slower than 1.25 times its traffic is bound
// by arithmetic and leaves memory to others), the second what copies beside it cost: measured with
// the traffic of a 14 B and a 28 B update, copies slow an update by twice their bytes, at most as
// long as there is an update to slow.
//
// With F, B of the last micro-step, U = kernels and copies in device memory, and `last` the work of
// the first offloaded parameter of the forward, whose gradient comes last:
//
//   at_step       exposed = W(after) - lead          after: all but gradient copies, which hide in
//   B next_forward  exposed = max(W(after) - F, last) in_backward   R = max(W(all) - B - U, last);
//   exposed = R, or if attached
//                 max(R (1 - F / W(all)), last): what is left is done in the forward's order
//   iteration     = micro-steps x (F + B) + U + exposed + what gradient copies exceed their B by
//
// A speculative update that is redone adds redo_rate x the exposed time of next_forward (attached)
// or at_step.
#include "offload/cost_model.h"

#include <algorithm>
#include <cmath>

#include "outboard/error.h"

namespace outboard {
namespace {

// Update kernels reach this share of a device copy's bandwidth (measured: 59 % to 98 %).
constexpr double kDeviceUpdateEfficiency = 0.8;
// A kernel up to this much slower than its bare traffic is bound by memory (measured: 1.15).
constexpr double kMemoryBoundRatio = 1.25;
// What a copied byte costs an update that runs beside it, in bytes of update traffic.
constexpr double kCopyContention = 2;
// Part of forward and backward that the host is ahead of the device when it calls step(), so that
// updates which need no norm overlap with it (measured: 0.1 s of 0.63 s).
constexpr double kStepLead = 0.16;
// Traffic of adding a 16-bit micro-batch to its fp32 sum, per element.
constexpr double kAccumulateBytes = 10;

/// What the elements of a set ask of the machine.
struct Work {
  double gradients_down = 0;
  double state_down = 0;
  double up = 0;
  double host_traffic = 0;
  double device_traffic = 0;
  double cpu_s = 0;
  double host_elements = 0;

  [[nodiscard]] bool is_offloaded() const { return up > 0; }
};

struct Busy {
  double link_s = 0;
  double cpu_s = 0;
  double host_memory_s = 0;

  [[nodiscard]] double longest() const { return std::max({link_s, cpu_s, host_memory_s}); }
};

double cpu_seconds_per_element(const PlanRequest& request, const Machine& machine) {
  for (const UpdateSpeed& update : machine.updates) {
    if (update.name == request.update) return update.seconds_per_element;
  }
  return 0;
}

void add(const ParameterToPlan& parameter, Placement placement, double cpu_seconds,
         const Machine& machine, Work& work) {
  const auto elements = static_cast<double>(parameter.elements);
  const double traffic = elements * update_traffic(parameter);
  const double weight_bytes = elements * static_cast<double>(bytes_of(parameter.type));
  switch (placement) {
    case Placement::kResident:
      work.device_traffic += traffic;
      return;
    case Placement::kHost:
      work.gradients_down += weight_bytes;
      work.up += weight_bytes;
      work.host_traffic += traffic;
      work.host_elements += elements;
      work.cpu_s += cpu_seconds > 0 ? elements * cpu_seconds : traffic / machine.host_bandwidth;
      return;
    case Placement::kStreamed:
      work.state_down += elements * stream_bytes(parameter);
      work.up += elements * stream_bytes(parameter);
      work.device_traffic += traffic;
      return;
  }
}

Work total(const PlanRequest& request, const Machine& machine,
           const std::vector<Placement>& placements, size_t first, size_t last) {
  const double cpu_seconds = cpu_seconds_per_element(request, machine);
  Work work;
  for (size_t i = first; i < last; ++i) {
    add(request.parameters[i], placements[i], cpu_seconds, machine, work);
  }
  return work;
}

/// The first offloaded parameter in the forward's order: its gradient is the last to come, and its
/// weight the first to be needed.
Work last_to_come(const PlanRequest& request, const Machine& machine,
                  const std::vector<Placement>& placements) {
  const auto found = std::ranges::find_if(
      placements, [](Placement placement) { return placement != Placement::kResident; });
  const auto index = static_cast<size_t>(found - placements.begin());
  return total(request, machine, placements, index, std::min(index + 1, placements.size()));
}

enum class Gradients { kCopiedBefore, kWithTheUpdate };

Busy busy(const Work& work, const Machine& machine, Gradients gradients) {
  const double down =
      work.state_down + (gradients == Gradients::kWithTheUpdate ? work.gradients_down : 0);
  const double least = std::min(down, work.up);
  const double traffic_s = work.host_traffic / machine.host_bandwidth;
  Busy result;
  result.link_s = least / machine.link_duplex + (down - least) / machine.link_down +
                  (work.up - least) / machine.link_up;
  result.cpu_s = work.cpu_s;
  result.host_memory_s =
      std::min(work.cpu_s, kMemoryBoundRatio * traffic_s) +
      kCopyContention * std::min(down + work.up, work.host_traffic) / machine.host_bandwidth;
  return result;
}

double device_seconds(const Work& work, const Machine& machine) {
  if (machine.device_bandwidth <= 0) return 0;
  const double copied = work.gradients_down + work.state_down + work.up;
  return (work.device_traffic / kDeviceUpdateEfficiency + copied) / machine.device_bandwidth;
}

/// What micro-steps before the last wait for: gradients that are sent and added on the host.
double accumulation_excess(const PlanRequest& request, const Machine& machine, const Work& work) {
  if (!request.offload_gradients || request.accumulation_steps < 2) return 0;
  const double copies = work.gradients_down / machine.link_down;
  const double sums = work.host_elements * kAccumulateBytes / machine.host_bandwidth;
  const double excess = std::max(0.0, std::max(copies, sums) - request.backward_s);
  return excess * (request.accumulation_steps - 1);
}

struct Exposure {
  double seconds = 0;
  Busy busy;
};

Exposure after_backward(const PlanRequest& request, const Machine& machine, const Work& work,
                        double last_s, Schedule schedule) {
  Exposure exposure;
  exposure.busy = busy(work, machine, Gradients::kCopiedBefore);
  const double after = exposure.busy.longest();
  if (schedule == Schedule::kNextForward && request.is_attached) {
    exposure.seconds = std::max(after - request.forward_s, last_s);
  } else {
    const double iteration = request.forward_s + request.backward_s;
    exposure.seconds = std::max(0.0, after - (request.needs_norm ? 0 : kStepLead * iteration));
  }
  return exposure;
}

Exposure in_backward(const PlanRequest& request, const Machine& machine, const Work& work,
                     double last_s) {
  Exposure exposure;
  exposure.busy = busy(work, machine, Gradients::kWithTheUpdate);
  const double all = exposure.busy.longest();
  const double window = request.backward_s + device_seconds(work, machine);
  exposure.seconds = std::max(all - window, last_s);
  if (request.is_attached && all > 0) {
    const double hidden_share = std::min(1.0, request.forward_s / all);
    exposure.seconds = std::max(exposure.seconds * (1 - hidden_share), last_s);
  }
  if (request.needs_norm) {
    exposure.seconds +=
        request.redo_rate *
        after_backward(request, machine, work, last_s, Schedule::kNextForward).seconds;
  }
  return exposure;
}

void check_rate(const char* name, double rate, const char* remedy) {
  if (std::isfinite(rate) && rate > 0) return;
  fail(ErrorKind::kValue, "planner", "the machine's ", name, " is ", rate, "; ", remedy);
}

void check_seconds(const char* name, double seconds) {
  if (std::isfinite(seconds) && seconds >= 0) return;
  fail(ErrorKind::kValue, "planner", name, " is ", seconds, "; give seconds, 0 or more");
}

}  // namespace

double update_traffic(const ParameterToPlan& parameter) {
  const auto weight = static_cast<double>(bytes_of(parameter.type));
  const double gradient = weight;
  double full_precision = 2 * weight;
  switch (parameter.master) {
    case MasterFormat::kWeight:
    case MasterFormat::kStochastic:
      break;
    case MasterFormat::kSplit:
      full_precision = 8;
      break;
    case MasterFormat::kF32:  // read and written, and its image written
      full_precision = 8 + weight;
      break;
  }
  return gradient + full_precision + 2 * parameter.state_bytes;
}

double stream_bytes(const ParameterToPlan& parameter) {
  return static_cast<double>(bytes_of(parameter.master)) + parameter.state_bytes;
}

void check_request(const PlanRequest& request, const Machine& machine) {
  if (request.parameters.empty()) {
    fail(ErrorKind::kValue, "planner", "there are 0 parameters; give at least one");
  }
  for (const ParameterToPlan& parameter : request.parameters) {
    if (parameter.elements == 0 || !(parameter.state_bytes >= 0)) {
      fail(ErrorKind::kValue, "planner", "a parameter has ", parameter.elements, " elements and ",
           parameter.state_bytes, " bytes of state each; give at least 1 and 0");
    }
  }
  check_seconds("forward_s", request.forward_s);
  check_seconds("backward_s", request.backward_s);
  if (request.accumulation_steps < 1 || !(request.redo_rate >= 0 && request.redo_rate <= 1)) {
    fail(ErrorKind::kValue, "planner", "accumulation_steps is ", request.accumulation_steps,
         " and redo_rate ", request.redo_rate, "; give 1 or more, and a share from 0 to 1");
  }
  constexpr const char* kRemedy = "measure the machine, or give bytes per second";
  check_rate("link_down", machine.link_down, kRemedy);
  check_rate("link_up", machine.link_up, kRemedy);
  check_rate("link_duplex", machine.link_duplex, kRemedy);
  check_rate("host_bandwidth", machine.host_bandwidth, kRemedy);
}

Prediction predict(const PlanRequest& request, const Machine& machine,
                   const std::vector<Placement>& placements, Schedule schedule) {
  check_request(request, machine);
  if (placements.size() != request.parameters.size()) {
    fail(ErrorKind::kValue, "planner", "there are ", placements.size(), " placements for ",
         request.parameters.size(), " parameters; give one each");
  }
  const Work work = total(request, machine, placements, 0, placements.size());
  const Work last = last_to_come(request, machine, placements);
  const bool goes_along = schedule == Schedule::kInBackward;
  const double last_s =
      busy(last, machine, goes_along ? Gradients::kWithTheUpdate : Gradients::kCopiedBefore)
          .longest();
  const Exposure exposure = goes_along ? in_backward(request, machine, work, last_s)
                                       : after_backward(request, machine, work, last_s, schedule);
  const double late_gradients =
      goes_along ? 0 : std::max(0.0, work.gradients_down / machine.link_down - request.backward_s);
  Prediction prediction;
  prediction.device_s = device_seconds(work, machine);
  prediction.compute_s =
      request.accumulation_steps * (request.forward_s + request.backward_s) + prediction.device_s;
  prediction.exposed_s =
      exposure.seconds + late_gradients + accumulation_excess(request, machine, work);
  prediction.iteration_s = prediction.compute_s + prediction.exposed_s;
  prediction.link_s = exposure.busy.link_s;
  prediction.cpu_s = exposure.busy.cpu_s;
  prediction.host_memory_s = exposure.busy.host_memory_s;
  return prediction;
}

Bound bound_of(const Prediction& prediction) {
  if (prediction.exposed_s < prediction.iteration_s / 20) return Bound::kCompute;
  const double longest = std::max({prediction.link_s, prediction.cpu_s, prediction.host_memory_s});
  if (prediction.link_s == longest) return Bound::kLink;
  return prediction.host_memory_s == longest ? Bound::kHostMemory : Bound::kCpu;
}

}  // namespace outboard
