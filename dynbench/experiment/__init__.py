"""From a workload file to a run directory: spec -> plan -> cells -> samples."""

from dynbench.experiment.run import Group, Observer, Plan, Result, Terminated, run_experiment
from dynbench.experiment.spec import (
    DEFAULT_SUITE,
    Options,
    Workload,
    check_options,
    chosen_workloads,
    load_spec,
    load_specs,
)
from dynbench.paths import workload_files

__all__ = [
    "DEFAULT_SUITE",
    "Group",
    "Observer",
    "Options",
    "Plan",
    "Result",
    "Terminated",
    "Workload",
    "check_options",
    "chosen_workloads",
    "load_spec",
    "load_specs",
    "run_experiment",
    "workload_files",
]
