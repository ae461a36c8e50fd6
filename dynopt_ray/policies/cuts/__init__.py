"""Policies without learning that cut the whole network once; all training comes afterwards."""

from dynopt_ray.policies.cuts.adaptations import as_adaptation
from dynopt_ray.policies.cuts.allocated_cut import AllocatedCut
from dynopt_ray.policies.cuts.candidates import CutCandidate, Cutting
from dynopt_ray.policies.cuts.ladder_cut import LadderCut
from dynopt_ray.policies.cuts.policy import CutChoice, CutPolicy
from dynopt_ray.policies.cuts.run import CUT_POLICIES, CutResult, cut_once, make_cut_policy
from dynopt_ray.policies.cuts.single_cut import SingleCut
from dynopt_ray.policies.cuts.targets import WholeCut, ladder

__all__ = [
    "CUT_POLICIES",
    "AllocatedCut",
    "CutCandidate",
    "CutChoice",
    "CutPolicy",
    "CutResult",
    "Cutting",
    "LadderCut",
    "SingleCut",
    "WholeCut",
    "as_adaptation",
    "cut_once",
    "ladder",
    "make_cut_policy",
]
