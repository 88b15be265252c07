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
//   B next_forward  exposed = max(W(after) - F, last) in_backward   nothing can change an update
//   any more (no norm, gradients given away):
//                 R = max(W(all) - B - U, 0);  exposed = max(R, last), or if attached
//                 max(R (1 - F / W(all)), last): what is left is done in the forward's order
//   in_backward   else streamed updates begin tentatively, into second copies; those of the host
//                 begin when the norm is known:
//                 R = max(link(streamed, gradients) - B - U, last)
//                 exposed = max(R + link(host), W(host)), or if attached
//                 max(R (1 - F / link(streamed, gradients)), R + link(host) - F, W(host) - F, last)
//                 and for the share redo_rate of steps what next_forward or at_step expose
//   iteration     = micro-steps x (F + B) + U + exposed + what gradient copies exceed their B by
#include "offload/planning/cost_model.h"

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

  Work& operator+=(const Work& other) {
    gradients_down += other.gradients_down;
    state_down += other.state_down;
    up += other.up;
    host_traffic += other.host_traffic;
    device_traffic += other.device_traffic;
    cpu_s += other.cpu_s;
    host_elements += other.host_elements;
    return *this;
  }
};

/// The elements of a plan by placement, and the first offloaded parameter in the forward's order:
/// its gradient is the last to come, and its weight the first to be needed.
struct Parts {
  Work host;
  Work streamed;
  Work all;
  Work last;
  Placement last_placement = Placement::kResident;
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

Parts parts_of(const PlanRequest& request, const Machine& machine,
               const std::vector<Placement>& placements) {
  const double cpu_seconds = cpu_seconds_per_element(request, machine);
  Parts parts;
  for (size_t i = 0; i < placements.size(); ++i) {
    Work work;
    add(request.parameters[i], placements[i], cpu_seconds, machine, work);
    parts.all += work;
    if (placements[i] == Placement::kResident) continue;
    (placements[i] == Placement::kHost ? parts.host : parts.streamed) += work;
    if (parts.last_placement != Placement::kResident) continue;
    parts.last = work;
    parts.last_placement = placements[i];
  }
  return parts;
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

Exposure after_backward(const PlanRequest& request, const Machine& machine, const Parts& parts,
                        Schedule schedule) {
  Exposure exposure;
  exposure.busy = busy(parts.all, machine, Gradients::kCopiedBefore);
  const double after = exposure.busy.longest();
  if (schedule != Schedule::kAtStep && request.is_attached) {
    const double last = busy(parts.last, machine, Gradients::kCopiedBefore).longest();
    exposure.seconds = std::max(after - request.forward_s, last);
  } else {
    const double iteration = request.forward_s + request.backward_s;
    exposure.seconds = std::max(0.0, after - (request.needs_norm ? 0 : kStepLead * iteration));
  }
  return exposure;
}

/// Share of work of `seconds` that the forward hides when it is done in the forward's order.
double hidden_share(const PlanRequest& request, double seconds) {
  if (!request.is_attached || seconds <= 0) return 0;
  return std::min(1.0, request.forward_s / seconds);
}

/// Updates for good: each begins when its gradient appears.
Exposure final_in_backward(const PlanRequest& request, const Machine& machine, const Parts& parts,
                           double window) {
  Exposure exposure;
  exposure.busy = busy(parts.all, machine, Gradients::kWithTheUpdate);
  const double all = exposure.busy.longest();
  const double last = busy(parts.last, machine, Gradients::kWithTheUpdate).longest();
  const double left = std::max(all - window, 0.0);
  exposure.seconds = std::max(left * (1 - hidden_share(request, all)), last);
  return exposure;
}

/// Streamed updates in backward, into second copies; the host's when the norm is known.
Exposure tentative_in_backward(const PlanRequest& request, const Machine& machine,
                               const Parts& parts, double window) {
  Work early = parts.streamed;
  early.gradients_down += parts.host.gradients_down;
  const double early_s = busy(early, machine, Gradients::kWithTheUpdate).longest();
  const Busy late = busy(parts.host, machine, Gradients::kCopiedBefore);
  const double last = busy(parts.last, machine, Gradients::kCopiedBefore).longest();
  const bool is_last_early = parts.last_placement == Placement::kStreamed;
  const double left = std::max(early_s - window, is_last_early ? last : 0);
  const double forward = request.is_attached ? request.forward_s : 0;
  Exposure exposure;
  exposure.seconds = std::max({left * (1 - hidden_share(request, early_s)),
                               left + late.link_s - forward, late.longest() - forward, last});
  exposure.busy = {early_s + late.link_s, late.cpu_s, late.host_memory_s};
  const double redone = after_backward(request, machine, parts, Schedule::kNextForward).seconds;
  exposure.seconds += request.redo_rate * std::max(0.0, redone - exposure.seconds);
  return exposure;
}

Exposure exposure_of(const PlanRequest& request, const Machine& machine, const Parts& parts,
                     Schedule schedule) {
  if (schedule != Schedule::kInBackward) {
    return after_backward(request, machine, parts, schedule);
  }
  const double window = request.backward_s + device_seconds(parts.all, machine);
  return speculates(request, schedule) ? tentative_in_backward(request, machine, parts, window)
                                       : final_in_backward(request, machine, parts, window);
}

}  // namespace

Prediction predict(const PlanRequest& request, const Machine& machine,
                   const std::vector<Placement>& placements, Schedule schedule) {
  check_request(request, machine);
  if (placements.size() != request.parameters.size()) {
    fail(ErrorKind::kValue, "planner", "there are ", placements.size(), " placements for ",
         request.parameters.size(), " parameters; give one each");
  }
  const Parts parts = parts_of(request, machine, placements);
  const Exposure exposure = exposure_of(request, machine, parts, schedule);
  const double late_gradients =
      schedule == Schedule::kInBackward
          ? 0
          : std::max(0.0, parts.all.gradients_down / machine.link_down - request.backward_s);
  Prediction prediction;
  prediction.device_s = device_seconds(parts.all, machine);
  prediction.compute_s =
      request.accumulation_steps * (request.forward_s + request.backward_s) + prediction.device_s;
  prediction.exposed_s =
      exposure.seconds + late_gradients + accumulation_excess(request, machine, parts.all);
  prediction.iteration_s = prediction.compute_s + prediction.exposed_s;
  prediction.link_s = exposure.busy.link_s;
  prediction.cpu_s = exposure.busy.cpu_s;
  prediction.host_memory_s = exposure.busy.host_memory_s;
  return prediction;
}

Bound bound_of(const Prediction& prediction) {
  const bool is_hidden = prediction.exposed_s < kExposedShare * prediction.iteration_s;
  return is_hidden ? Bound::kCompute : busiest(prediction);
}

Bound busiest(const Prediction& prediction) {
  const double longest = std::max({prediction.link_s, prediction.cpu_s, prediction.host_memory_s});
  if (prediction.link_s == longest) return Bound::kLink;
  return prediction.host_memory_s == longest ? Bound::kHostMemory : Bound::kCpu;
}

}  // namespace outboard
