"""Run the trials of a search: decide, record, start, continue, and survive what dies."""

from dynopt_ray.cluster.trials.board import TrialBoard
from dynopt_ray.cluster.trials.board_trial import BoardTrial
from dynopt_ray.cluster.trials.front import KeptNetworks, rank
from dynopt_ray.cluster.trials.loop import LoopConfig, TrialLoop
from dynopt_ray.cluster.trials.packs import Advance, PackableTrial, TrialPack, TurnTaking
from dynopt_ray.cluster.trials.plain_values import flat_config, from_json, to_json
from dynopt_ray.cluster.trials.pools import ActorPool, LocalPool, SlotPool
from dynopt_ray.cluster.trials.records import RecordSink, SearchRecords, replay
from dynopt_ray.cluster.trials.trial import (
    UNFINISHED,
    Config,
    Measured,
    Measurement,
    Trial,
    TrialStatus,
    failure,
)
from dynopt_ray.cluster.trials.trial_files import TrialFiles
from dynopt_ray.cluster.trials.worker import TrialWorker, WorkerConfig

__all__ = [
    "UNFINISHED",
    "ActorPool",
    "Advance",
    "BoardTrial",
    "Config",
    "KeptNetworks",
    "LocalPool",
    "LoopConfig",
    "Measured",
    "Measurement",
    "PackableTrial",
    "RecordSink",
    "SearchRecords",
    "SlotPool",
    "Trial",
    "TrialBoard",
    "TrialFiles",
    "TrialLoop",
    "TrialPack",
    "TrialStatus",
    "TrialWorker",
    "TurnTaking",
    "WorkerConfig",
    "failure",
    "flat_config",
    "from_json",
    "rank",
    "replay",
    "to_json",
]
