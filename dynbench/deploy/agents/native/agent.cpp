// The native agent of dynbench: measures a job on the machine where it runs: `dynbench-agent FOLDER`.
//
// It does what python_agent.py does, where there is no Python: it compares answers and decisions with what is expected,
// times the arms in random order, and writes `result.json` and, as the proof that it came to its end, `result.sha256`.

#include <sys/time.h>

#include <csignal>
#include <cstdio>
#include <new>

#include "measure.hpp"

namespace {

constexpr double SPARE_S = 5.0;  // after the deadline, to write the result; then the kernel ends this process

// Sets the time after which the kernel ends this process, even if the runtime hangs.
void watch(const std::string& folder) {
  double limit = 60;
  try {
    limit = json::parse(content_of(folder + "/job.json")).at("deadline_s");
  } catch (const std::exception&) {  // said where the job is read
  }
  limit += SPARE_S;
  signal(SIGALRM, SIG_DFL);
  itimerval timer{};
  timer.it_value.tv_sec = time_t(limit);
  timer.it_value.tv_usec = suseconds_t((limit - double(time_t(limit))) * 1e6);
  setitimer(ITIMER_REAL, &timer, nullptr);
}

// A result that says why there is none; null: not even the job's identity can be read.
json failed(const std::string& folder, const std::string& reason) {
  json id;
  try {
    id = json::parse(content_of(folder + "/job.json")).at("job_id");
  } catch (const std::exception&) {
    return nullptr;
  }
  const double now = wall_s();
  return {{"job_id", id},           {"status", "failed"},    {"reason", reason.substr(0, 1000)},
          {"notes", json::array()}, {"emulated", false},     {"threads", 1},
          {"cpus", nullptr},        {"started_unix_s", now}, {"ended_unix_s", now},
          {"clock_jumps", 0},       {"stopped_by", "rounds"}, {"checks", json::array()},
          {"arms", json::array()},  {"sustained", nullptr},  {"memory_bytes", nullptr},
          {"readings", json::object()}};
}

json measured(const std::string& folder, std::string& version) {
  try {
    version = load_runtime();
    return Measurement(folder).run();
  } catch (const Stop& e) {
    return failed(folder, e.what());
  } catch (const std::bad_alloc&) {
    return failed(folder, "there is not enough memory");
  } catch (const std::exception& e) {
    return failed(folder, std::string("the agent fails: ") + e.what());
  }
}

int run(const std::string& folder) {
  write_file(folder + "/agent.pid", std::to_string(getpid()));
  watch(folder);
  std::string version = "none";
  json result = measured(folder, version);
  if (result.is_null()) throw Stop(folder + "/job.json is no job");
  result["schema_version"] = SCHEMA_VERSION;
  result["agent"] = {{"name", "native"},           {"version", VERSION},   {"runtime", "onnxruntime"},
                     {"runtime_version", version}, {"provider", PROVIDER}, {"notes", result["notes"]}};
  result.erase("notes");
  result["device"] = device_facts();
  const std::string content = result.dump(-1, ' ', false, json::error_handler_t::replace);
  write_file(folder + "/result.json", content);
  write_file(folder + "/result.sha256", sha256(content));
  return 0;
}

}  // namespace

int main(int count, char** words) {
  const std::string word = count == 2 ? words[1] : "";
  try {
    if (word == "--version") {
      printf("%s %s %s\n", VERSION, uname_here().machine, load_runtime().c_str());
      return 0;
    }
    if (!word.empty() && word[0] != '-') return run(word);
    fputs("usage: dynbench-agent FOLDER | --version\n", stderr);
  } catch (const std::exception& e) {
    fprintf(stderr, "%s\n", e.what());
  }
  return 1;
}
