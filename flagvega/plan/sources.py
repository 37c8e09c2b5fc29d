"""Which source of costs a spec has: a profile that it names, one that was measured for it, or data sheets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault
from flagvega.model.workload import Workload
from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.costs import Costs
from flagvega.plan.machine import Machine
from flagvega.plan.measured import MeasuredCosts, with_measured_links
from flagvega.plan.profile import misfits
from flagvega.plan.tables import read_profile

PROFILE_FILE = "profile.json"
"""In ``experiment.exp_dir``: used by itself when it fits."""


def choose_costs(spec: Spec, work: Workload, machine: Machine, distributed_optimizer: bool) -> Costs:
    """The costs that a plan of ``spec`` goes by.

    ConfigError when the profile that ``plan.profile`` names is faulty, or holds for another model; one that lies in
    the run's folder and does not fit is passed over, and the costs say so.
    """
    analytic = AnalyticCosts(work, machine, distributed_optimizer)
    named = _named(spec)
    path = Path(named) if named else spec.exp_dir / PROFILE_FILE
    if named is None and not path.is_file():
        return analytic
    profile = read_profile(path)
    reasons = misfits(profile.valid, work)
    if reasons and named:
        fix = "measure again with action=profile, or leave plan.profile out"
        where = spec.where.get("plan.profile", "plan.profile")
        raise ConfigError([Fault(f"{path} does not fit: {reason}", where, fix) for reason in reasons])
    if reasons:
        note = f"{path} was not used: {reasons[0]}"
        return AnalyticCosts(work, machine, distributed_optimizer, notes=(note,))
    measured = with_measured_links(machine, profile)
    said = ", ".join(word for word in (profile.valid.engine, profile.valid.date) if word)
    origin = f"{path}: {said}" if said else f"{path}, which does not say how"
    return MeasuredCosts(profile, AnalyticCosts(work, measured, distributed_optimizer), origin)


def _named(spec: Spec) -> Any:
    return spec.blocks.get("plan", {}).get("profile")
