// The zip format as far as stored records need it, with its 64-bit extension (APPNOTE 6.3, sections
// 4.3 and 4.5); see zip_archive.h.
#include "offload/checkpoint/zip_archive.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "outboard/error.h"

namespace outboard {
namespace {

constexpr std::string_view kWho = "checkpoint";
constexpr uint64_t kAlignment = 64;
constexpr uint32_t kLocalSignature = 0x04034b50;
constexpr uint32_t kEntrySignature = 0x02014b50;
constexpr uint32_t kEndSignature = 0x06054b50;
constexpr uint32_t kEnd64Signature = 0x06064b50;
constexpr uint32_t kLocator64Signature = 0x07064b50;
constexpr uint64_t kLocalBytes = 30;
constexpr uint64_t kEntryBytes = 46;
constexpr uint64_t kEndBytes = 22;
constexpr uint64_t kEnd64Bytes = 56;
constexpr uint64_t kLocator64Bytes = 20;
constexpr uint32_t kIn64 = 0xFFFFFFFF;  // "the value is in the 64-bit field"
constexpr uint16_t kField64 = 1;
constexpr uint16_t kPaddingField = 0x4246;  // any id that nobody gives a meaning
constexpr uint16_t kVersion = 45;           // that knows 64 bits
constexpr uint16_t kDate = (1 << 5) | 1;    // 1980-01-01: equal states make equal files

/// Little-endian numbers, one after another.
class Bytes {
 public:
  template <class T>
  Bytes& put(T value) {
    for (size_t i = 0; i < sizeof(T); ++i) {
      text_ += static_cast<char>(static_cast<uint64_t>(value) >> (8 * i));
    }
    return *this;
  }
  Bytes& put(const std::string& text) {
    text_ += text;
    return *this;
  }
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  std::string text_;
};

uint32_t low(uint64_t value) { return value < kIn64 ? static_cast<uint32_t>(value) : kIn64; }

uint32_t checksum(std::span<const std::byte> bytes) {
  return static_cast<uint32_t>(
      crc32_z(crc32_z(0, nullptr, 0), reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

// Version, flags, method, time and date, checksum and both sizes: the same in both headers.
Bytes& put_common(Bytes& out, uint32_t crc, uint64_t size) {
  return out.put<uint16_t>(kVersion)
      .put<uint16_t>(0)
      .put<uint16_t>(0)
      .put<uint16_t>(0)
      .put<uint16_t>(kDate)
      .put(crc)
      .put(low(size))
      .put(low(size));
}

std::string padding_field(uint64_t position) {
  const uint64_t missing = (kAlignment - (position + 4) % kAlignment) % kAlignment;
  Bytes field;
  field.put(kPaddingField).put(static_cast<uint16_t>(missing)).put(std::string(missing, '\0'));
  return field.text();
}

}  // namespace

void ZipWriter::write(const std::string& bytes) {
  sink_(bytes.data(), bytes.size());
  position_ += bytes.size();
}

void ZipWriter::add(const std::string& name, std::span<const std::byte> bytes) {
  const Record record{name, bytes.size(), position_, checksum(bytes)};
  Bytes extra;
  if (record.size >= kIn64) {
    extra.put(kField64).put<uint16_t>(16).put(record.size).put(record.size);
  }
  extra.put(padding_field(position_ + kLocalBytes + name.size() + extra.text().size()));
  Bytes header;
  header.put(kLocalSignature);
  put_common(header, record.crc, record.size)
      .put(static_cast<uint16_t>(name.size()))
      .put(static_cast<uint16_t>(extra.text().size()))
      .put(name)
      .put(extra.text());
  write(header.text());
  if (!bytes.empty()) sink_(bytes.data(), bytes.size());
  position_ += bytes.size();
  records_.push_back(record);
}

void ZipWriter::finish() {
  const uint64_t start = position_;
  for (const Record& record : records_) {
    Bytes extra;
    if (record.size >= kIn64) extra.put(record.size).put(record.size);
    if (record.offset >= kIn64) extra.put(record.offset);
    Bytes field;
    if (!extra.text().empty()) {
      field.put(kField64).put(static_cast<uint16_t>(extra.text().size())).put(extra.text());
    }
    Bytes entry;
    entry.put(kEntrySignature).put(kVersion);
    put_common(entry, record.crc, record.size)
        .put(static_cast<uint16_t>(record.name.size()))
        .put(static_cast<uint16_t>(field.text().size()))
        .put<uint16_t>(0)
        .put<uint16_t>(0)
        .put<uint16_t>(0)
        .put<uint32_t>(0)
        .put(low(record.offset))
        .put(record.name)
        .put(field.text());
    write(entry.text());
  }
  const uint64_t size = position_ - start;
  const uint64_t count = records_.size();
  Bytes end;
  end.put(kEnd64Signature)
      .put<uint64_t>(kEnd64Bytes - 12)
      .put(kVersion)
      .put(kVersion)
      .put<uint32_t>(0)
      .put<uint32_t>(0)
      .put(count)
      .put(count)
      .put(size)
      .put(start);
  end.put(kLocator64Signature).put<uint32_t>(0).put(start + size).put<uint32_t>(1);
  const auto short_count = static_cast<uint16_t>(std::min<uint64_t>(count, 0xFFFF));
  end.put(kEndSignature)
      .put<uint32_t>(0)
      .put(short_count)
      .put(short_count)
      .put(low(size))
      .put(low(start))
      .put<uint16_t>(0);
  write(end.text());
}

ZipReader::ZipReader(std::string name, std::span<const std::byte> bytes)
    : name_(std::move(name)), bytes_(bytes) {
  const Directory directory = find_directory();
  uint64_t position = directory.offset;
  const uint64_t end = directory.offset + directory.size;
  for (uint64_t i = 0; i < directory.count; ++i) position = read_entry(position, end);
  if (position != end) refuse("its directory has gaps");
}

void ZipReader::refuse(const std::string& what) const {
  fail(ErrorKind::kFile, kWho, name_, " (", bytes_.size(),
       " bytes) is damaged or no checkpoint: ", what, "; use an older one");
}

template <class T>
T ZipReader::number(uint64_t offset) const {
  // Callers have compared the offset with the length.
  T value = 0;
  std::memcpy(&value, bytes_.data() + offset, sizeof(T));
  return value;
}

ZipReader::Directory ZipReader::find_directory() const {
  const uint64_t length = bytes_.size();
  if (length < kEndBytes || number<uint32_t>(length - kEndBytes) != kEndSignature) {
    refuse("it does not end as an archive does");
  }
  const uint64_t end = length - kEndBytes;
  Directory found{.offset = number<uint32_t>(end + 16),
                  .size = number<uint32_t>(end + 12),
                  .count = number<uint16_t>(end + 10)};
  uint64_t limit = end;
  const bool has_64 = end >= kLocator64Bytes + kEnd64Bytes &&
                      number<uint32_t>(end - kLocator64Bytes) == kLocator64Signature;
  if (has_64) {
    limit = number<uint64_t>(end - kLocator64Bytes + 8);
    if (limit > end - kLocator64Bytes - kEnd64Bytes || number<uint32_t>(limit) != kEnd64Signature) {
      refuse("its 64-bit directory is not where it should be");
    }
    found = {.offset = number<uint64_t>(limit + 48),
             .size = number<uint64_t>(limit + 40),
             .count = number<uint64_t>(limit + 32)};
  }
  if (found.offset > limit || found.size != limit - found.offset) {
    refuse("its directory lies outside of it");
  }
  return found;
}

void ZipReader::read_field_64(uint64_t at, uint64_t end,
                              std::initializer_list<uint64_t*> values) const {
  while (end - at >= 4) {
    const auto id = number<uint16_t>(at);
    uint64_t left = number<uint16_t>(at + 2);
    at += 4;
    if (left > end - at) refuse("a field of its directory is cut off");
    const uint64_t next = at + left;
    for (uint64_t* value : values) {
      if (id != kField64 || *value != kIn64 || left < 8) continue;
      *value = number<uint64_t>(at);
      at += 8;
      left -= 8;
    }
    at = next;
  }
}

uint64_t ZipReader::read_entry(uint64_t position, uint64_t end) {
  if (end - position < kEntryBytes || number<uint32_t>(position) != kEntrySignature) {
    refuse("an entry of its directory is cut off");
  }
  const uint64_t name_bytes = number<uint16_t>(position + 28);
  const uint64_t extra_bytes = number<uint16_t>(position + 30);
  const uint64_t whole = kEntryBytes + name_bytes + extra_bytes + number<uint16_t>(position + 32);
  if (end - position < whole) refuse("an entry of its directory is cut off");
  uint64_t size = number<uint32_t>(position + 24);
  uint64_t stored = number<uint32_t>(position + 20);
  uint64_t offset = number<uint32_t>(position + 42);
  const uint64_t extra = position + kEntryBytes + name_bytes;
  read_field_64(extra, extra + extra_bytes, {&size, &stored, &offset});
  const std::string name(reinterpret_cast<const char*>(bytes_.data()) + position + kEntryBytes,
                         name_bytes);
  if (number<uint16_t>(position + 10) != 0 || stored != size) {
    refuse("its record " + name + " is compressed");
  }
  check_record(name, offset, size, number<uint32_t>(position + 16));
  return position + whole;
}

void ZipReader::check_record(const std::string& name, uint64_t offset, uint64_t size,
                             uint32_t crc) {
  const uint64_t length = bytes_.size();
  if (offset > length || length - offset < kLocalBytes ||
      number<uint32_t>(offset) != kLocalSignature) {
    refuse("its record " + name + " is not where it should be");
  }
  const uint64_t before =
      kLocalBytes + number<uint16_t>(offset + 26) + number<uint16_t>(offset + 28);
  // Records that share bytes could claim more than the file holds.
  if (length - offset < before || length - offset - before < size || length - total_ < size) {
    refuse("its record " + name + " of " + std::to_string(size) + " bytes is cut off");
  }
  total_ += size;
  const auto bytes = bytes_.subspan(offset + before, size);
  if (checksum(bytes) != crc) refuse("the checksum of its record " + name + " is wrong");
  const size_t slash = name.find('/');
  const std::string key = slash == std::string::npos ? name : name.substr(slash + 1);
  if (!records_.emplace(key, bytes).second) refuse("it has the record " + name + " twice");
}

bool ZipReader::has(std::string_view name) const { return records_.contains(name); }

std::span<const std::byte> ZipReader::record(std::string_view name) const {
  const auto found = records_.find(name);
  if (found == records_.end()) refuse("it has no record " + std::string(name));
  return found->second;
}

}  // namespace outboard
