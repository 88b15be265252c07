// Slab layout, accounting and registration behind HostMemory.
#include "offload/memory/host_memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <iomanip>
#include <limits>
#include <sstream>
#include <system_error>
#include <utility>

#include "outboard/error.h"

namespace outboard {
namespace {

constexpr const char* kWho = "HostMemory";
constexpr size_t kSmallAlignment = 64;
constexpr size_t kBigAlignment = 4096;
constexpr size_t kBigArrayBytes = size_t{256} << 10;
// Below this, aligning a slab to a huge page costs more than huge pages bring.
constexpr size_t kHugeSlabBytes = size_t{4} << 20;
constexpr size_t kMostBytes = std::numeric_limits<size_t>::max() / 4;

std::string readable(size_t bytes) {
  constexpr size_t kMiB = size_t{1} << 20;
  constexpr size_t kGiB = size_t{1} << 30;
  std::ostringstream text;
  text << bytes << " bytes" << std::fixed << std::setprecision(2);
  if (bytes >= kGiB) {
    text << " (" << static_cast<double>(bytes) / static_cast<double>(kGiB) << " GiB)";
  } else if (bytes >= kMiB) {
    text << " (" << static_cast<double>(bytes) / static_cast<double>(kMiB) << " MiB)";
  }
  return text.str();
}

std::string limit_text(__rlimit_resource resource) {
  rlimit limit = {};
  if (::getrlimit(resource, &limit) != 0) return "unknown";
  return limit.rlim_cur == RLIM_INFINITY ? "unlimited" : readable(limit.rlim_cur);
}

size_t alignment_of_array(size_t bytes) {
  return bytes >= kBigArrayBytes ? kBigAlignment : kSmallAlignment;
}

}  // namespace

HostMemory::HostMemory(std::shared_ptr<Device> device, bool pin, int threads, size_t slab_bytes)
    : device_(std::move(device)),
      pin_(pin && device_ != nullptr),
      threads_(threads),
      slab_bytes_(slab_bytes) {}

HostMemory::~HostMemory() { unpin(slabs_); }

HostArray HostMemory::reserve(size_t bytes, MemoryKind kind, bool transfer) {
  if (bytes > kMostBytes - pending_bytes_) {
    fail(ErrorKind::kMemory, kWho, "an array of ", readable(bytes), " on top of ",
         readable(pending_bytes_), " planned fits no address space; check the parameter's size");
  }
  places_.push_back({.bytes = bytes, .kind = kind, .transfer = transfer});
  pending_bytes_ += bytes;
  return HostArray(&places_.back());
}

void HostMemory::rollback() {
  places_.resize(committed_places_);
  pending_bytes_ = 0;
}

void HostMemory::commit() {
  try {
    std::vector<Slab> slabs = plan_slabs();
    if (!slabs.empty()) map(std::move(slabs));
  } catch (...) {
    rollback();
    throw;
  }
  committed_places_ = places_.size();
  pending_bytes_ = 0;
}

std::vector<HostMemory::Slab> HostMemory::plan_slabs() {
  std::vector<Slab> slabs;
  for (const bool transfer : {true, false}) {
    bool is_open = false;  // the last slab takes more arrays of this sort
    for (size_t i = committed_places_; i < places_.size(); ++i) {
      HostArray::Place& place = places_[i];
      if (place.transfer != transfer || place.bytes == 0) continue;
      const size_t alignment = alignment_of_array(place.bytes);
      if (!is_open || round_up(slabs.back().bytes, alignment) + place.bytes > slab_bytes_) {
        slabs.push_back({.transfer = transfer});
        is_open = true;
      }
      Slab& slab = slabs.back();
      place.slab = slabs.size() - 1;
      place.offset = round_up(slab.bytes, alignment);
      slab.bytes = place.offset + place.bytes;
    }
  }
  size_t end = 0;
  for (Slab& slab : slabs) {
    slab.offset = slab.bytes >= kHugeSlabBytes ? round_up(end, kHugePageBytes) : end;
    end = slab.offset + page_rounded(slab.bytes);
  }
  return slabs;
}

void HostMemory::map(std::vector<Slab> slabs) {
  slabs_.reserve(slabs_.size() + slabs.size());
  mappings_.reserve(mappings_.size() + 1);
  try {
    MemoryMapping mapping(slabs.back().offset + slabs.back().bytes);
    for (Slab& slab : slabs) {
      slab.begin = mapping.begin() + slab.offset;
      if (slab.bytes >= kHugeSlabBytes) advise_huge_pages(slab.begin, slab.bytes);
    }
    touch_and_pin(&slabs);
    mappings_.push_back(std::move(mapping));
  } catch (const std::system_error& error) {
    fail(ErrorKind::kMemory, kWho, readable(pending_bytes_), " asked for, ",
         readable(mapped_bytes_), " held: ", error.what(), " (RLIMIT_AS is ", limit_text(RLIMIT_AS),
         "); free memory, keep fewer parameters in host memory, or choose a smaller state format");
  }
  account(slabs);
}

void HostMemory::touch_and_pin(std::vector<Slab>* slabs) {
  std::vector<Extent> extents;
  extents.reserve(slabs->size());
  for (const Slab& slab : *slabs) extents.push_back({slab.begin, page_rounded(slab.bytes)});
  std::atomic<bool> is_refused = false;
  try {
    make_resident(extents, threads_, [&](size_t i) {
      // One refusal stands for all: the limits that cause it do not go away.
      if (!pin_ || !(*slabs)[i].transfer || is_refused) return;
      (*slabs)[i].is_pinned = device_->pin(extents[i].begin, extents[i].bytes);
      if (!(*slabs)[i].is_pinned) is_refused = true;
    });
  } catch (...) {
    unpin(*slabs);
    throw;
  }
}

void HostMemory::unpin(const std::vector<Slab>& slabs) noexcept {
  for (const Slab& slab : slabs) {
    if (slab.is_pinned) device_->unpin(slab.begin, page_rounded(slab.bytes));
  }
}

void HostMemory::account(const std::vector<Slab>& slabs) {
  size_t unpinned = 0;
  for (const Slab& slab : slabs) {
    const size_t bytes = page_rounded(slab.bytes);
    mapped_bytes_ += bytes;
    if (slab.is_pinned) pinned_bytes_ += bytes;
    if (slab.transfer && !slab.is_pinned) unpinned += bytes;
    slabs_.push_back(slab);
  }
  for (size_t i = committed_places_; i < places_.size(); ++i) {
    HostArray::Place& place = places_[i];
    if (place.bytes == 0) continue;
    place.address = slabs[place.slab].begin + place.offset;
    bytes_[static_cast<size_t>(place.kind)] += place.bytes;
  }
  if (pin_ && unpinned > 0) warn_of_unpinned(unpinned);
}

size_t HostMemory::slab_of(const void* address) const {
  const auto found = std::ranges::find_if(slabs_, [address](const Slab& slab) {
    return address >= slab.begin && address < slab.begin + slab.bytes;
  });
  assert(found != slabs_.end());
  return static_cast<size_t>(found - slabs_.begin());
}

void HostMemory::pin_slab(size_t index) {
  Slab& slab = slabs_.at(index);
  if (!pin_ || slab.is_pinned) return;
  const size_t bytes = page_rounded(slab.bytes);
  slab.is_pinned = device_->pin(slab.begin, bytes);
  if (slab.is_pinned) {
    pinned_bytes_ += bytes;
  } else {
    warn_of_unpinned(bytes);
  }
}

void HostMemory::warn_of_unpinned(size_t bytes) {
  if (!warning_.empty()) return;
  warning_ = "[HostMemory] " + readable(bytes) +
             " could not be registered with the device (RLIMIT_MEMLOCK is " +
             limit_text(RLIMIT_MEMLOCK) +
             "); training goes on with pageable memory and slower copies; raise the limit (ulimit "
             "-l unlimited, for a container --ulimit memlock=-1), or turn pinning off to silence "
             "this";
}

}  // namespace outboard
