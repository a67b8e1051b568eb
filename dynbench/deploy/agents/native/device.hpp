// What the machine says of itself: facts, emulators, clock, temperature, battery, and sensors of power.
#pragma once

#include <sys/utsname.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "files.hpp"

using nlohmann::json;

// --- Text of sensors, as numbers. Each takes what a file or a command gives; nothing: it does not hold the value. ---

inline std::optional<double> number_in(const std::string& text) {
  try {
    size_t used = 0;
    const double value = std::stod(text, &used);
    if (used == text.size()) return value;
  } catch (const std::exception&) {
  }
  return std::nullopt;
}

// Watts by rail from `vcgencmd pmic_read_adc` of a Raspberry Pi 5, with or without channel numbers.
inline std::map<std::string, double> parse_pmic(const std::string& text) {
  static const std::regex READING(R"((\w+)_([AV])\s*(?:(?:current|volt)\(\d+\))?\s*=\s*(-?[\d.]+))");
  std::map<std::string, double> amperes, volts, watts;
  for (std::sregex_iterator it(text.begin(), text.end(), READING), end; it != end; ++it)
    if (const auto value = number_in((*it)[3])) ((*it)[2] == "A" ? amperes : volts)[(*it)[1]] = *value;
  for (const auto& [rail, a] : amperes)
    if (const auto v = volts.find(rail); v != volts.end()) watts[rail] = a * v->second;
  return watts;
}

// Watts by rail from the files of a Jetson's INA3221: names such as `in1_label`, `in1_input`, `curr1_input`.
inline std::map<std::string, double> parse_ina3221(const std::map<std::string, std::string>& files) {
  std::map<std::string, double> watts;
  for (const auto& [name, label] : files) {
    std::smatch channel;
    if (!std::regex_match(name, channel, std::regex("in(\\d)_label"))) continue;
    const auto volts = files.find("in" + channel[1].str() + "_input");
    const auto amperes = files.find("curr" + channel[1].str() + "_input");
    if (volts == files.end() || amperes == files.end()) continue;
    const auto mv = number_in(trimmed(volts->second)), ma = number_in(trimmed(amperes->second));
    if (mv && ma) watts[trimmed(label)] = *mv * *ma / 1e6;
  }
  return watts;
}

struct Battery {
  double percent, volts, temperature_c;
  bool powered;
};

// `dumpsys battery` of Android.
inline std::optional<Battery> parse_battery(const std::string& text) {
  std::map<std::string, std::string> values;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);)
    if (const auto colon = line.find(':'); colon != std::string::npos)
      values[trimmed(line.substr(0, colon))] = trimmed(line.substr(colon + 1));
  const auto level = number_in(values["level"]), millivolts = number_in(values["voltage"]);
  const auto tenths = number_in(values["temperature"]), scale = number_in(values.count("scale") ? values["scale"] : "100");
  if (!level || !millivolts || !tenths || !scale || *scale == 0) return std::nullopt;
  bool powered = false;
  for (const char* kind : {"AC", "USB", "Wireless", "Dock"})
    powered = powered || values[std::string(kind) + " powered"] == "true";
  return Battery{100 * *level / *scale, *millivolts / 1000, *tenths / 10, powered};
}

// Degrees from a thermal zone, which gives thousandths; nothing: no plausible temperature.
inline std::optional<double> parse_temperature(const std::string& text) {
  const auto value = number_in(text);
  return value && *value > 0 && *value < 150e3 ? std::optional(*value / 1000) : std::nullopt;
}

// Whether this is an emulator of another machine, whose times mean nothing.
//
// machine: architecture by uname; command: how this process was started according to the kernel, and its name; cpuinfo:
// of the kernel; modalias: of its processor, which tells the host's kind; emulator: what Android says of being one.
inline bool is_emulated(const std::string& machine, const std::string& command, const std::string& cpuinfo,
                        const std::string& modalias, const std::string& emulator) {
  if (has(command, "qemu-") || has(emulator, "1")) return true;
  const bool x86 = machine == "x86_64" || machine == "i386" || machine == "i686";
  const bool on_x86 = has(cpuinfo, "GenuineIntel") || has(cpuinfo, "AuthenticAMD") || has(modalias, "type:x86");
  return x86 ? has(modalias, "type:aarch64") : on_x86;
}

// --- The machine ---

inline utsname uname_here() {
  utsname names{};
  uname(&names);
  return names;
}

inline std::string property(const std::string& name) {  // of Android
  return access("/system/bin/getprop", X_OK) ? "" : trimmed(output_of("/system/bin/getprop " + name));
}

inline bool emulated_here() {
  // Of a process, qemu answers for /proc/self in its guest's name; for the thread the kernel does.
  const std::string started = text_of("/proc/thread-self/cmdline") + " " + text_of("/proc/thread-self/comm");
  return is_emulated(uname_here().machine, started, text_of("/proc/cpuinfo"),
                     text_of("/sys/devices/system/cpu/modalias"),
                     property("ro.boot.qemu") + property("ro.kernel.qemu"));
}

inline std::vector<std::filesystem::path> entries(const std::string& folder) {
  std::vector<std::filesystem::path> found;
  std::error_code ignored;
  for (std::filesystem::directory_iterator it(folder, ignored), end; it != end; it.increment(ignored))
    found.push_back(it->path());
  return found;
}

// Of the hottest thermal zone; nothing: there is none that may be read.
inline std::optional<double> temperature_c() {
  std::optional<double> hottest;
  for (const auto& zone : entries("/sys/class/thermal"))
    if (has(zone.filename(), "thermal_zone"))
      if (const auto celsius = parse_temperature(text_of(zone / "temp"))) hottest = std::max(hottest, celsius);
  return hottest;
}

inline int cores() { return int(std::max(1L, sysconf(_SC_NPROCESSORS_CONF))); }

// Of the fastest core that is used; nothing: the kernel does not say.
inline std::optional<double> clock_mhz(std::vector<int> cpus) {
  for (int n = 0; cpus.empty() && n < cores(); ++n) cpus.push_back(n);
  std::optional<double> fastest;
  for (const int n : cpus) {
    const auto khz = number_in(text_of("/sys/devices/system/cpu/cpu" + std::to_string(n) + "/cpufreq/scaling_cur_freq"));
    if (khz) fastest = std::max(fastest, std::optional(*khz / 1000));
  }
  return fastest;
}

inline std::optional<double> battery_percent() { return number_in(text_of("/sys/class/power_supply/battery/capacity")); }

inline json device_facts() {
  const utsname names = uname_here();
  const auto first_of = [](std::initializer_list<std::string> texts) {
    for (const std::string& text : texts)
      if (!text.empty()) return text.substr(0, 200);
    return std::string("unnamed");
  };
  json cpu = nullptr;
  std::istringstream lines(text_of("/proc/cpuinfo"));
  for (std::string line; cpu.is_null() && std::getline(lines, line);)
    for (const char* key : {"model name", "Model", "Hardware"})
      if (line.rfind(key, 0) == 0 && has(line, ":")) cpu = trimmed(line.substr(line.find(':') + 1));
  const std::string android = property("ro.build.version.release");
  const double memory = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGE_SIZE));
  return {{"name", first_of({text_of("/proc/device-tree/model"), property("ro.product.model"), names.nodename})},
          {"architecture", names.machine},
          {"cpu", cpu},
          {"cores", cores()},
          {"memory_bytes", memory > 0 ? json(memory) : json(nullptr)},
          {"os", (android.empty() ? "" : "Android " + android + ", ") + names.sysname + " " + names.release},
          {"browser", nullptr}};
}

// Largest resident set of this process; null: the kernel does not say.
inline json peak_memory_bytes() {
  std::smatch found;
  const std::string status = text_of("/proc/self/status");
  if (!std::regex_search(status, found, std::regex("VmHWM:\\s*(\\d+) kB"))) return nullptr;
  return 1024.0 * std::stod(found[1]);
}

// --- Power ---

struct Watts {
  double watts;
  std::string scope;
  bool estimate;
};

inline double sum_of(const std::map<std::string, double>& rails) {
  double sum = 0;
  for (const auto& rail : rails) sum += rail.second;
  return sum;
}

inline std::optional<Watts> watts_rpi5_pmic() {
  const auto rails = parse_pmic(output_of("vcgencmd pmic_read_adc"));
  if (rails.empty()) return std::nullopt;
  return Watts{sum_of(rails), "sum of the rails of the power chip, without its losses and USB", true};
}

inline std::optional<Watts> watts_jetson_ina3221() {
  std::map<std::string, double> rails;
  for (const auto& chip : entries("/sys/class/hwmon")) {
    if (text_of(chip / "name") != "ina3221") continue;
    std::map<std::string, std::string> files;
    for (const auto& file : entries(chip))
      if (std::error_code e; std::filesystem::is_regular_file(file, e)) files[file.filename()] = text_of(file);
    rails.merge(parse_ina3221(files));
  }
  if (rails.empty()) return std::nullopt;
  if (const auto total = rails.find("VDD_IN"); total != rails.end())
    return Watts{total->second, "module (VDD_IN), without the carrier board", false};
  std::string names;
  for (const auto& rail : rails) names += (names.empty() ? "" : ", ") + rail.first;
  return Watts{sum_of(rails), "sum of the rails " + names, false};
}

// Nothing also while the device is charged, as the current is then not that of the device.
inline std::optional<Watts> watts_android_battery() {
  const auto state = parse_battery(output_of("dumpsys battery"));
  const auto microamperes = number_in(text_of("/sys/class/power_supply/battery/current_now"));
  if (!state || state->powered || !microamperes) return std::nullopt;
  return Watts{std::abs(*microamperes) / 1e6 * state->volts, "whole device, by its battery gauge", false};
}

struct Sensor {
  std::optional<Watts> (*read)();
  std::string why_not;
};

inline const std::map<std::string, Sensor> SENSORS = {
    {"rpi5_pmic", {watts_rpi5_pmic, "vcgencmd gives no currents: it needs a Raspberry Pi 5"}},
    {"jetson_ina3221", {watts_jetson_ina3221, "there is no INA3221 that may be read"}},
    {"android_battery",
     {watts_android_battery, "the battery gauge cannot be read, or the device is being charged"}}};
