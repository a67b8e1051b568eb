// One job: compares answers and decisions, then times the arms in random order. See python_agent.py, which does the same.
#pragma once

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <functional>
#include <limits>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "device.hpp"
#include "job.hpp"
#include "runtime.hpp"

constexpr const char* VERSION = "1";
constexpr double MOST_DIFFERENT = 0.01;  // share of the decisions: two scores can be equal up to rounding
constexpr size_t MOST_SAMPLES = 400000;  // of a job: its result is sent through a shell
constexpr size_t FIRST_LOOK = 10;        // rounds; each further look comes at twice as many
constexpr double CLOCK_JUMP_S = 1.0;     // of the wall clock against the one that only goes forward
constexpr double READ_EVERY_S = 1.0;

// The time of the job is over.
struct Deadline {};

inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
inline double now_s() { return double(now_ns()) / 1e9; }
inline double wall_s() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }
inline json unavailable(const std::string& why) { return {{"unavailable", why}}; }

// Half the 95 % interval of the median as a share of it: two order statistics (sign test).
inline double half_width(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  const size_t n = x.size();
  // The logarithm of a binomial probability: from 1075 rounds on 0.5**n itself is 0.
  size_t rank = 0;
  double log_term = double(n) * std::log(0.5), below = std::exp(log_term);
  while (below <= 0.025 && 2 * (rank + 1) <= n) {
    ++rank;
    log_term += std::log(double(n - rank + 1) / double(rank));
    below += std::exp(log_term);
  }
  if (!rank) return std::numeric_limits<double>::infinity();
  const double middle = (x[(n - 1) / 2] + x[n / 2]) / 2;
  return (x[n - rank] - x[rank - 1]) / 2 / middle;
}

// Reads a sensor twice a second until it is ended.
class Power {
 public:
  explicit Power(std::optional<Watts> (*read)()) : thread_([this, read] { watch(read); }) {}
  ~Power() { end(); }
  void end() {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }
  std::optional<double> mean() const { return count_ ? std::optional(sum_ / count_) : std::nullopt; }
  Watts last{0, "", false};

 private:
  void watch(std::optional<Watts> (*read)()) {
    std::unique_lock lock(mutex_);
    while (!over_) {
      lock.unlock();
      if (const auto found = read()) last = *found, sum_ += found->watts, ++count_;
      lock.lock();
      wake_.wait_for(lock, std::chrono::milliseconds(500), [this] { return over_; });
    }
  }
  std::mutex mutex_;
  std::condition_variable wake_;
  bool over_ = false;
  double sum_ = 0;
  int count_ = 0;
  std::thread thread_;  // the last member: it uses the others
};

// An arm at a batch size.
struct Lane {
  const Arm& arm;
  size_t size;
  std::string file, reason;
  std::optional<Session> session;
  std::vector<const char*> inputs;                 // those that the graph takes
  std::vector<std::vector<const OrtValue*>> feeds;  // of each batch, for each input
  std::vector<Owned<OrtValue>> tensors;
  std::vector<std::unique_ptr<Array>> given;
  size_t batches = 0;
  std::vector<const char*> answers;
  json load_ms = nullptr, first_ms = nullptr;
  std::vector<std::vector<int64_t>> rounds;
  std::vector<size_t> positions;

  Lane(const Arm& a, size_t n) : arm(a), size(n), file(n == 1 && !a.single.empty() ? a.single : a.any) {
    for (const Answer& answer : arm.answers) answers.push_back(answer.output.c_str());
  }

  void run(size_t batch, const std::vector<const char*>& names, OrtValue** out) const {
    session->run(inputs, feeds[batch].data(), names, out);
  }

  // The ns of a batch, with making its answers and giving them back.
  int64_t timed(size_t batch, Values& values) const {
    const int64_t start = now_ns();
    run(batch, answers, values.data());
    values.clear();
    return std::max<int64_t>(1, now_ns() - start);
  }

  // One pass over the stream: the ns of every batch.
  std::vector<int64_t> sample() const {
    Values values(answers.size());
    std::vector<int64_t> out(batches);
    for (size_t i = 0; i < batches; ++i) out[i] = timed(i, values);
    return out;
  }
};

class Measurement {
 public:
  explicit Measurement(std::string folder)
      : folder_(std::move(folder)), job_(read_job(folder_)), start_(now_s()), wall_(wall_s() - now_s()),
        emulated_(job_.emulated || emulated_here()) {
    pin();
  }

  json run() {
    const double started = wall_s();
    for (const size_t size : job_.batch_sizes)
      for (const Arm& arm : job_.arms) lanes_.push_back(std::make_unique<Lane>(arm, size));
    json checks = json::array(), sustained = nullptr;
    std::string stopped_by = "rounds";
    try {
      inputs_ = read_npy(folder_ + "/" + job_.input_file);
      for (auto& lane : lanes_) load(*lane);
      for (auto& lane : lanes_)
        if (lane->reason.empty() && lane->arm.compared) checks.push_back(check(*lane));
      if (!emulated_) {
        stopped_by = time();
        if (job_.sustained_s > 0) sustain(sustained = json::array());
      }
    } catch (const Deadline&) {
      stopped_by = "deadline";
    }
    json arms = json::array();
    for (auto& lane : lanes_) {
      if (lane->rounds.empty() && lane->reason.empty() && !emulated_)
        lane->reason = "its turn did not come before the deadline";
      arms.push_back({{"name", lane->arm.name},
                      {"batch_size", lane->size},
                      {"reason", lane->reason.empty() ? json(nullptr) : json(lane->reason)},
                      {"load_ms", emulated_ ? json(nullptr) : lane->load_ms},
                      {"first_run_ms", emulated_ ? json(nullptr) : lane->first_ms},
                      {"download_ms", nullptr},
                      {"rounds", lane->rounds},
                      {"positions", lane->positions}});
    }
    return {{"job_id", job_.id},
            {"status", "ok"},
            {"reason", nullptr},
            {"notes", notes_},
            {"emulated", emulated_},
            {"threads", job_.threads},
            {"cpus", cpus_.empty() ? json(nullptr) : json(cpus_)},
            {"started_unix_s", started},
            {"ended_unix_s", wall_s()},
            {"clock_jumps", clock_jumps_},
            {"stopped_by", stopped_by},
            {"checks", checks},
            {"arms", arms},
            {"sustained", sustained},
            {"memory_bytes", emulated_ ? json(nullptr) : peak_memory_bytes()},
            {"readings", emulated_ ? json::object() : readings()}};
  }

 private:
  void pin() {
    if (job_.cpus.empty()) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int cpu : job_.cpus)
      if (cpu < CPU_SETSIZE) CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) || sched_getaffinity(0, sizeof set, &set))
      throw Stop("it cannot be pinned to the cores " + json(job_.cpus).dump() + ": " + std::strerror(errno));
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) cpus_.push_back(cpu);
  }

  // Makes the session and the batches: full ones only.
  void load(Lane& lane) {
    lane.batches = inputs_.rows() / lane.size;
    if (!lane.batches) {
      lane.reason = "the job holds " + std::to_string(inputs_.rows()) + " items only";
      return;
    }
    try {
      const int64_t start = now_ns();
      lane.session.emplace(folder_ + "/" + lane.file, job_.threads);
      lane.load_ms = double(now_ns() - start) / 1e6;
      lane.feeds.resize(lane.batches);
      feed(lane, job_.input, inputs_, 1);
      for (const Given& given : lane.arm.given) {
        lane.given.push_back(std::make_unique<Array>(read_npy(folder_ + "/" + given.file)));
        feed(lane, given.input, *lane.given.back(), given.rows);
      }
      Values values(lane.answers.size());
      lane.first_ms = double(lane.timed(0, values)) / 1e6;
    } catch (const Fault& e) {
      lane.reason = e.what();
    }
    within();
  }

  // Gives an array to an input, if the graph has it: so many rows of each item.
  static void feed(Lane& lane, const std::string& input, Array& array, size_t rows) {
    if (!lane.session->takes(input)) return;
    std::vector<int64_t> shape = array.shape;
    shape[0] = int64_t(lane.size * rows);
    const size_t bytes = lane.size * rows * array.per_row() * bytes_of(array.type);
    if (bytes * lane.batches > array.data.size()) throw Fault("the job has too few rows for the input " + input);
    lane.inputs.push_back(input.c_str());
    for (size_t i = 0; i < lane.batches; ++i) {
      lane.tensors.push_back(tensor_on(array.data.data() + i * bytes, bytes, shape, array.type));
      lane.feeds[i].push_back(lane.tensors.back().get());
    }
  }

  // Compares the answers and decisions of the whole stream; an arm that differs is not timed.
  json check(Lane& lane) {
    json found = {{"arm", lane.arm.name}, {"batch_size", lane.size}, {"error", "nan"}, {"decisions", 0}, {"decisions_differ", 0}};
    std::set<std::string> wanted(lane.answers.begin(), lane.answers.end());
    for (const Decision& d : lane.arm.decisions) wanted.insert({d.output, d.items_output.empty() ? d.output : d.items_output});
    std::vector<const char*> names;
    for (const std::string& name : wanted) names.push_back(name.c_str());
    std::vector<std::map<std::string, Array>> runs;
    try {
      for (size_t b = 0; b < lane.batches; ++b) {
        Values values(names.size());
        lane.run(b, names, values.data());
        runs.emplace_back();
        for (size_t i = 0; i < names.size(); ++i) runs.back()[names[i]] = copied(values[i]);
        within();
      }
    } catch (const Fault& e) {
      lane.reason = e.what();
      return found;
    }
    std::vector<bool> same(lane.batches * lane.size, true);
    size_t decisions = 0, differ = 0;
    for (const Decision& d : lane.arm.decisions) compare(lane, d, runs, same, decisions, differ);
    double error = 0;
    for (const Answer& answer : lane.arm.answers) {
      std::vector<const Array*> parts;
      for (const auto& run : runs) parts.push_back(&run.at(answer.output));
      error = std::max(error, answer_error(parts, read_npy(folder_ + "/" + answer.file), same));
    }
    found["decisions"] = decisions;
    found["decisions_differ"] = differ;
    if (std::isfinite(error)) found["error"] = error;
    char text[64];
    snprintf(text, sizeof text, "%.1e", error);
    if (!std::isfinite(error)) lane.reason = "answers have another shape or type, or NaN or infinities in other places";
    else if (error > job_.tolerance) lane.reason = std::string("answers differ by ") + text + " of the largest value";
    else if (double(differ) > MOST_DIFFERENT * double(decisions))
      lane.reason = std::to_string(differ) + " of " + std::to_string(decisions) + " decisions differ";
    return found;
  }

  void compare(const Lane& lane, const Decision& decision, const std::vector<std::map<std::string, Array>>& runs,
               std::vector<bool>& same, size_t& decisions, size_t& differ) const {
    const Array expected = read_npy(folder_ + "/" + decision.expected), reached = read_npy(folder_ + "/" + decision.reached);
    const size_t rows = lane.size * decision.rows_per_item;
    if (expected.rows() < rows * runs.size() || reached.count() < rows * runs.size())
      throw Stop(decision.expected + " has fewer rows than the stream");
    double largest = 1e-30;
    for (size_t i = 0; expected.is_float() && i < expected.count(); ++i)
      largest = std::max(largest, std::abs(expected.number(i)));
    for (size_t b = 0; b < runs.size(); ++b) {
      std::vector<int64_t> ids = decision.items;
      if (!decision.items_output.empty()) {
        const Array& given = runs[b].at(decision.items_output);
        for (size_t i = 0; i < given.count(); ++i) ids.push_back(given.whole(i));
      }
      std::vector<bool> wrong(rows, true);
      compare_decisions(ids, runs[b].at(decision.output), expected, reached, b * rows, job_.tolerance * largest, wrong);
      for (size_t row = 0; row < rows; ++row) {
        decisions += reached.number(b * rows + row) != 0;
        differ += wrong[row];
        if (wrong[row]) same[b * lane.size + row / decision.rows_per_item] = false;
      }
    }
  }

  // Rounds of each batch size in turn. Returns why it stopped.
  std::string time() {
    std::mt19937_64 random(job_.seed);
    std::set<std::string> reasons;
    std::vector<size_t> sizes;
    for (const size_t size : job_.batch_sizes)
      if (std::find(sizes.begin(), sizes.end(), size) == sizes.end()) sizes.push_back(size);
    for (const size_t size : sizes) {
      std::vector<Lane*> group;
      for (auto& lane : lanes_)
        if (lane->size == size && lane->reason.empty()) group.push_back(lane.get());
      if (group.empty()) continue;
      cool_down();
      for (const Lane* lane : group) {
        const double end = now_s() + job_.warm_up_s;
        do {
          lane->sample();
          within();
        } while (now_s() < end);
      }
      reasons.insert(rounds(group, random, MOST_SAMPLES / sizes.size()));
    }
    for (const char* reason : {"time limit", "rounds", "precision"})
      if (reasons.count(reason)) return reason;
    return "rounds";
  }

  // Each round is the whole stream by each arm, in random order.
  std::string rounds(const std::vector<Lane*>& group, std::mt19937_64& random, size_t most) {
    const double start = now_s();
    double read = -READ_EVERY_S;
    size_t look = FIRST_LOOK, batches = 0;
    for (const Lane* lane : group) batches += lane->batches;
    for (;;) {
      std::vector<Lane*> turn = group;
      for (size_t i = turn.size(); i > 1; --i) std::swap(turn[i - 1], turn[random() % i]);
      std::vector<std::vector<int64_t>> taken;
      for (const Lane* lane : turn) {
        taken.push_back(lane->sample());
        within();
      }
      for (size_t i = 0; i < turn.size(); ++i) {  // a round counts as a whole or not at all
        turn[i]->rounds.push_back(std::move(taken[i]));
        turn[i]->positions.push_back(i);
      }
      const double now = now_s();
      watch_clock();
      if (now - read >= READ_EVERY_S) {  // between rounds, so that no sample is disturbed
        read = now;
        take_readings();
      }
      const size_t done = group[0]->rounds.size();
      if (done >= look) {
        while (look <= done) look *= 2;  // or it would stop on the luckiest round
        if (group.size() > 1 && done >= job_.rounds_min && widest(group) <= job_.precision) return "precision";
      }
      if (done >= job_.rounds_min && now - start >= job_.time_limit_s) return "time limit";
      if ((done + 1) * batches > most) return "rounds";
    }
  }

  static double widest(const std::vector<Lane*>& group) {
    std::vector<std::vector<double>> totals;
    for (const Lane* lane : group) {
      totals.emplace_back();
      for (const auto& round : lane->rounds) {
        double sum = 0;
        for (const int64_t ns : round) sum += double(ns);
        totals.back().push_back(sum);
      }
    }
    double width = 0;
    for (size_t arm = 1; arm < totals.size(); ++arm) {
      std::vector<double> ratios;
      for (size_t i = 0; i < totals[0].size(); ++i) ratios.push_back(totals[0][i] / totals[arm][i]);
      width = std::max(width, half_width(ratios));
    }
    return width;
  }

  // Each arm at the first batch size for `sustained_s`, second by second, with the power where it can be read.
  void sustain(json& rows) {
    json energy = json::object();
    for (auto& lane : lanes_) {
      if (lane->rounds.empty() || lane->size != job_.batch_sizes[0] || energy.contains(lane->arm.name)) continue;
      cool_down();
      auto [sensor, why] = find_sensor();
      std::optional<Power> power;
      if (sensor) power.emplace(sensor->read);
      const double begin = now_s();
      double passed = 0;
      int64_t ns = 0;
      size_t items = 0, total = 0, second = 0;
      Values values(lane->answers.size());
      while (passed < job_.sustained_s) {
        for (size_t b = 0; b < lane->batches && passed < job_.sustained_s; ++b) {
          ns += lane->timed(b, values);
          items += lane->size;
          passed = now_s() - begin;
          if (passed < double(second + 1)) continue;
          const auto celsius = temperature_c();
          rows.push_back({{"arm", lane->arm.name}, {"second", second}, {"items", items}, {"ns", ns},
                          {"temperature_c", celsius ? json(*celsius) : json(nullptr)}});
          total += items;
          items = 0, ns = 0, second = size_t(passed);
        }
        within();
      }
      if (power) power->end();
      const auto watts = power ? power->mean() : std::nullopt;
      if (!watts) energy[lane->arm.name] = unavailable(why);
      else if (job_.sustained_s < 10) energy[lane->arm.name] = unavailable("it takes 10 s of load");
      else
        energy[lane->arm.name] = {{"joules_per_item", *watts * passed / double(std::max<size_t>(1, total + items))},
                                  {"watts", *watts},
                                  {"scope", power->last.scope},
                                  {"estimate", power->last.estimate},
                                  {"idle", "included"}};
    }
    if (!energy.empty()) energy_ = energy;
  }

  std::pair<const Sensor*, std::string> find_sensor() const {
    std::string why = "no sensor of power is named for this device";
    for (const std::string& name : job_.sensors)
      if (!SENSORS.count(name)) return {nullptr, "unknown sensor '" + name + "'"};
    for (auto name = job_.sensors.rbegin(); name != job_.sensors.rend(); ++name) why = SENSORS.at(*name).why_not;
    for (const std::string& name : job_.sensors)
      if (SENSORS.at(name).read()) return {&SENSORS.at(name), SENSORS.at(name).why_not};
    return {nullptr, why};
  }

  // Waits until the device is cool enough, but no longer than `cool_down_s`.
  void cool_down() {
    if (!job_.max_temperature_c) return;
    const double most = *job_.max_temperature_c, end = now_s() + job_.cool_down_s;
    auto celsius = temperature_c();
    if (!celsius) note("the temperature cannot be read, so nothing waited for a cool device");
    for (; celsius && *celsius > most; celsius = temperature_c()) {
      if (now_s() >= end) {
        char text[120];
        snprintf(text, sizeof text, "it still had %.0f C after %.0f s of waiting for %.0f C", *celsius, job_.cool_down_s, most);
        return note(text);
      }
      within();
      std::this_thread::sleep_for(std::chrono::seconds(1));
    }
  }

  void note(const std::string& text) {
    if (std::find(notes_.begin(), notes_.end(), text) == notes_.end()) notes_.push_back(text);
  }

  void within() const {
    if (now_s() - start_ > job_.deadline_s) throw Deadline();
  }

  // Counts jumps of the wall clock, which is never used for a time.
  void watch_clock() {
    const double wall = wall_s() - now_s();
    clock_jumps_ += std::abs(wall - wall_) > CLOCK_JUMP_S;
    wall_ = wall;
  }

  void take_readings() {
    const double seconds = std::round((now_s() - start_) * 1000) / 1000;
    const auto keep = [&](json& rows, const std::optional<double>& value) {
      if (value) rows.push_back({seconds, *value});
    };
    keep(clock_rows_, clock_mhz(cpus_));
    keep(temperature_rows_, temperature_c());
    keep(battery_rows_, battery_percent());
  }

  json readings() const {
    const auto rows_or = [](const json& rows, const char* why) { return rows.empty() ? unavailable(why) : rows; };
    return {{"clock_mhz", rows_or(clock_rows_, "the kernel gives no clock of the cores (cpufreq)")},
            {"temperature_c", rows_or(temperature_rows_, "there is no thermal zone that may be read")},
            {"battery", rows_or(battery_rows_, "there is no battery that may be read")},
            {"energy_j", energy_}};
  }

  const std::string folder_;
  const Job job_;
  const double start_;
  double wall_;
  int clock_jumps_ = 0;
  const bool emulated_;
  std::vector<int> cpus_;
  std::vector<std::string> notes_;
  Array inputs_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  json clock_rows_ = json::array(), temperature_rows_ = json::array(), battery_rows_ = json::array();
  json energy_ = unavailable("energy needs sustained load of 10 s or more, after the rounds (--sustained 10)");
};
