// The job, as far as an agent needs it.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "files.hpp"
#include "sha256.hpp"

using nlohmann::json;

constexpr int SCHEMA_VERSION = 1;

struct Answer {
  std::string output, file;
};

struct Decision {
  std::string output, expected, reached;
  std::string items_output;    // of the graph, which says whom it was decided for; empty: always `items`
  std::vector<int64_t> items;
  size_t rows_per_item = 1;
};

// A further input: of each item so many rows of an array.
struct Given {
  std::string input, file;
  size_t rows;
};

struct Arm {
  std::string name, any, single;
  std::vector<Answer> answers;
  std::vector<Decision> decisions;
  std::vector<Given> given;
  bool compared = true;  // false: its answers are wrong on purpose
};

struct Job {
  std::string id, input, input_file;
  double tolerance, warm_up_s, time_limit_s, precision, sustained_s, cool_down_s, deadline_s;
  std::optional<double> max_temperature_c;
  std::vector<Arm> arms;
  std::vector<size_t> batch_sizes;
  std::vector<int> cpus;
  std::vector<std::string> sensors;
  int threads;
  uint64_t seed;
  size_t rounds_min;
  bool emulated;
};

template <class T>
std::vector<T> list_or_none(const json& value) {
  return value.is_null() ? std::vector<T>{} : value.get<std::vector<T>>();
}

inline Arm read_arm(const json& table) {
  Arm arm;
  arm.name = table.at("name");
  arm.any = table.at("graphs").at("any");
  arm.compared = table.value("compared", true);
  for (const json& g : table.value("given", json::array())) arm.given.push_back({g.at("input"), g.at("file"), g.at("rows")});
  if (const json single = table.at("graphs").value("single", json()); !single.is_null()) arm.single = single;
  for (const json& a : table.at("answers")) arm.answers.push_back({a.at("output"), a.at("file")});
  for (const json& d : table.at("decisions")) {
    Decision decision;
    decision.output = d.at("decision");
    decision.expected = d.at("expected");
    decision.reached = d.at("reached");
    if (d.at("items").is_string()) decision.items_output = d.at("items");
    else decision.items = d.at("items").get<std::vector<int64_t>>();
    for (const json& size : d.at("sizes")) decision.rows_per_item *= size.get<size_t>();
    arm.decisions.push_back(decision);
  }
  return arm;
}

// The job in a folder, after every file was compared with its hash; it stops where that is not so.
inline Job read_job(const std::string& folder) {
  try {
    const json table = json::parse(content_of(folder + "/job.json"));
    if (table.at("schema_version") != SCHEMA_VERSION)
      throw Stop("the job has schema version " + table.at("schema_version").dump() + "; this agent reads " +
                 std::to_string(SCHEMA_VERSION));
    for (const auto& [name, right] : table.at("sha256").items())
      if (sha256(content_of(folder + "/" + name)) != right) throw Stop(name + " was changed: its sha256 differs");
    if (!table.value("split", json()).is_null())
      throw Stop("the native agent measures no network that is split: give `agent = \"python\"` in the target's file");
    Job job;
    job.id = table.at("job_id");
    job.input = table.at("input").at("name");
    job.input_file = table.at("input").at("file");
    job.tolerance = table.at("tolerance");
    job.warm_up_s = table.at("warm_up_s");
    job.time_limit_s = table.at("time_limit_s");
    job.precision = table.at("precision");
    job.sustained_s = table.at("sustained_s");
    job.cool_down_s = table.at("cool_down_s");
    job.deadline_s = table.at("deadline_s");
    if (!table.at("max_temperature_c").is_null()) job.max_temperature_c = table.at("max_temperature_c").get<double>();
    job.batch_sizes = table.at("batch_sizes").get<std::vector<size_t>>();
    job.cpus = list_or_none<int>(table.at("cpus"));
    job.sensors = list_or_none<std::string>(table.at("sensors"));
    job.threads = table.at("threads");
    job.seed = table.at("seed");
    job.rounds_min = table.at("rounds_min");
    job.emulated = table.at("emulated");
    for (const json& arm : table.at("arms")) job.arms.push_back(read_arm(arm));
    return job;
  } catch (const json::exception& e) {
    throw Stop(std::string("the job cannot be read: ") + e.what());
  }
}
