// Files, commands, and what ends a measurement.
#pragma once

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

// It cannot be measured; the message says why.
struct Stop : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string trimmed(const std::string& text) {
  const char* blank = " \t\r\n";
  const auto begin = text.find_first_not_of(blank);
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(blank) - begin + 1);
}

inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// All of a file; it stops where it cannot be read.
inline std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(file), {}};
  if (!file) throw Stop(path + " cannot be read: " + std::strerror(errno));
  return content;
}

// Content of a small file of the kernel; empty: it cannot be read.
inline std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(file), {}};
  for (char& c : content)
    if (c == '\0') c = ' ';
  return trimmed(content);
}

// What a command prints; empty: it is not there, fails, or takes too long.
inline std::string output_of(const std::string& command) {
  FILE* pipe = popen(("timeout 5 " + command + " </dev/null 2>/dev/null").c_str(), "r");
  if (!pipe) return "";
  std::string out;
  char part[4096];
  for (size_t n; (n = fread(part, 1, sizeof part, pipe)) > 0;) out.append(part, n);
  const int status = pclose(pipe);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? out : "";
}

// Writes a file in one step: it is complete, or not there. A link that is there is not followed.
inline void write_file(const std::string& path, const std::string& content) {
  const std::string part = path + ".part";
  unlink(part.c_str());  // what a process left that was killed
  const int file = open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  bool ok = file >= 0;
  for (size_t done = 0; ok && done < content.size();) {
    const ssize_t n = write(file, content.data() + done, content.size() - done);
    if (n < 0 && errno == EINTR) continue;
    ok = n > 0;
    if (ok) done += size_t(n);
  }
  ok = ok && fsync(file) == 0;
  const int why = errno;
  if (file >= 0) close(file);
  if (!ok || rename(part.c_str(), path.c_str()) != 0)
    throw Stop(path + " cannot be written: " + std::strerror(ok ? errno : why));
}
