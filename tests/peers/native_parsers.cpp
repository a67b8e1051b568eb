// Reads cases as JSON, and prints what the headers of the native agent make of them, so that a test compares it with the
// python agent.
#include <iostream>

#include "measure.hpp"

namespace {

json number_or_none(double value) { return std::isfinite(value) ? json(value) : json("inf"); }

json battery(const std::string& text) {
  const auto state = parse_battery(text);
  if (!state) return nullptr;
  return {{"percent", state->percent}, {"volts", state->volts}, {"temperature_c", state->temperature_c}, {"powered", state->powered}};
}

}  // namespace

int main() {
  const json cases = json::parse(std::cin);
  json out;
  for (const json& text : cases["pmic"]) out["pmic"].push_back(parse_pmic(text));
  for (const json& files : cases["ina3221"])
    out["ina3221"].push_back(parse_ina3221(files.get<std::map<std::string, std::string>>()));
  for (const json& text : cases["battery"]) out["battery"].push_back(battery(text));
  for (const json& text : cases["temperature"]) {
    const auto celsius = parse_temperature(text);
    out["temperature"].push_back(celsius ? json(*celsius) : json(nullptr));
  }
  for (const json& c : cases["emulated"]) out["emulated"].push_back(is_emulated(c[0], c[1], c[2], c[3], c[4]));
  for (const json& ratios : cases["half_width"]) out["half_width"].push_back(number_or_none(half_width(ratios)));
  for (const json& text : cases["sha256"]) out["sha256"].push_back(sha256(text.get<std::string>()));
  std::cout << out;
}
