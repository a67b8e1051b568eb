// Arrays of jobs: files of NumPy, little-endian and in C order; and how answers and decisions are compared.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "files.hpp"

enum class Type { f32, f64, i32, i64, boolean, u8, i8 };

inline size_t bytes_of(Type type) {
  return type == Type::f64 || type == Type::i64 ? 8 : type == Type::f32 || type == Type::i32 ? 4 : 1;
}

struct Array {
  Type type = Type::f32;
  std::vector<int64_t> shape;
  std::vector<char> data;

  size_t rows() const { return shape.empty() ? 0 : size_t(shape[0]); }
  size_t per_row() const {
    size_t n = 1;
    for (size_t i = 1; i < shape.size(); ++i) n *= size_t(shape[i]);
    return n;
  }
  size_t count() const { return data.size() / bytes_of(type); }
  bool is_float() const { return type == Type::f32 || type == Type::f64; }

  template <class T>
  T get(size_t i) const {
    T value;
    std::memcpy(&value, data.data() + i * sizeof(T), sizeof(T));
    return value;
  }
  double number(size_t i) const {
    switch (type) {
      case Type::f32: return get<float>(i);
      case Type::f64: return get<double>(i);
      case Type::i32: return get<int32_t>(i);
      case Type::i64: return double(get<int64_t>(i));
      case Type::i8: return get<int8_t>(i);
      default: return get<uint8_t>(i);
    }
  }
  int64_t whole(size_t i) const { return type == Type::i64 ? get<int64_t>(i) : int64_t(number(i)); }
};

inline Array read_npy(const std::string& path) {
  static const std::map<std::string, Type> TYPES = {{"<f4", Type::f32}, {"<f8", Type::f64},     {"<i4", Type::i32},
                                                    {"<i8", Type::i64}, {"|b1", Type::boolean}, {"|u1", Type::u8},
                                                    {"|i1", Type::i8}};
  const std::string content = content_of(path);
  if (content.size() < 12 || content.compare(0, 6, "\x93NUMPY") != 0) throw Stop(path + " is no .npy file");
  const auto byte = [&](size_t i) { return size_t(static_cast<unsigned char>(content[i])); };
  const size_t start = byte(6) == 1 ? 10 : 12;
  const size_t length = byte(8) | byte(9) << 8 | (start == 12 ? byte(10) << 16 | byte(11) << 24 : 0);
  if (start + length > content.size()) throw Stop(path + " is cut off");
  const std::string header = content.substr(start, length);
  std::smatch type, shape;
  Array array;
  if (!std::regex_search(header, type, std::regex("'descr': *'([^']+)'")) || !TYPES.count(type[1]) ||
      !std::regex_search(header, shape, std::regex("'shape': *\\(([0-9, ]*)\\)")) ||
      !has(header, "'fortran_order': False"))
    throw Stop(path + " holds an array of another kind than jobs have");
  array.type = TYPES.at(type[1]);
  std::istringstream sizes(shape[1]);
  size_t count = 1;
  for (std::string size; std::getline(sizes, size, ',') && !trimmed(size).empty();) {
    array.shape.push_back(std::stoll(size));
    count *= size_t(array.shape.back());
  }
  array.data.assign(content.begin() + long(start + length), content.end());
  if (array.data.size() != count * bytes_of(array.type)) throw Stop(path + " is shorter or longer than it says");
  return array;
}

// Largest difference relative to the largest value. Infinite where shape or type is another, or NaN or infinities are in
// other places.
//
// found: an array for each batch; right: [items or more, ...]; same: the items that are compared.
inline double answer_error(const std::vector<const Array*>& found, const Array& right, const std::vector<bool>& same) {
  const double none = std::numeric_limits<double>::infinity();
  size_t item = 0;
  double difference = 0, largest = 0;
  for (const Array* batch : found) {
    if (batch->type != right.type || batch->shape.size() != right.shape.size() || batch->shape.empty()) return none;
    if (!std::equal(batch->shape.begin() + 1, batch->shape.end(), right.shape.begin() + 1)) return none;
    const size_t per = batch->per_row();
    if (item + batch->rows() > same.size() || same.size() > right.rows()) return none;
    for (size_t row = 0; row < batch->rows(); ++row, ++item) {
      if (!same[item]) continue;
      for (size_t k = 0; k < per; ++k) {
        const double x = batch->number(row * per + k), y = right.number(item * per + k);
        if (std::isnan(y) || std::isinf(y)) {
          if (std::isnan(y) ? !std::isnan(x) : x != y) return none;
        } else if (!std::isfinite(x)) {
          return none;
        } else {
          difference = std::max(difference, std::abs(x - y));
          largest = std::max(largest, std::abs(y));
        }
      }
    }
  }
  return item == same.size() ? difference / std::max(largest, 1e-30) : none;
}

// Marks which decisions of one batch are others than expected, or missing, or too many.
//
// ids: of the rows that were asked, within the batch; value: what was decided for them; expected, reached: [rows of the
// stream, ...]; base: the first row of this batch; wrong: of its rows, all true before.
inline void compare_decisions(const std::vector<int64_t>& ids, const Array& value, const Array& expected,
                              const Array& reached, size_t base, double allowed, std::vector<bool>& wrong) {
  const size_t rows = wrong.size(), per = expected.per_row(), size = bytes_of(expected.type);
  std::vector<bool> asked(rows, false);
  for (const int64_t id : ids) {
    if (id < 0 || size_t(id) >= rows || asked[size_t(id)]) return;
    asked[size_t(id)] = true;
  }
  if (value.type != expected.type || value.count() != ids.size() * per) return;
  for (size_t row = 0; row < rows; ++row) wrong[row] = asked[row] != (reached.number(base + row) != 0);
  for (size_t i = 0; i < ids.size(); ++i)
    for (size_t k = 0; k < per; ++k) {
      const size_t here = i * per + k, there = (base + size_t(ids[i])) * per + k;
      const bool equal = expected.is_float()
                             ? std::abs(value.number(here) - expected.number(there)) <= allowed
                             : std::memcmp(&value.data[here * size], &expected.data[there * size], size) == 0;
      if (!equal) wrong[size_t(ids[i])] = true;
    }
}
