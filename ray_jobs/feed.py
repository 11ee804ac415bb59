"""Ray Tune fed with jobs: which run at a time, on what, and what becomes of those that fail."""

import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import cloudpickle
from ray import tune as ray_tune
from ray.exceptions import GetTimeoutError, RayActorError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from models.data.features import FeatureConfig
from models.data.schema import UserError
from ray_jobs.cluster import on_gpus
from ray_jobs.config import Config
from ray_jobs.progress import say
from ray_jobs.reporter import EPOCHS
from ray_jobs.storage import short_digest
from ray_jobs.trial import CONTROLLER, FAILED, RUN, TRACE, Assignment, trial
from tuning.search import Epochs, Job
from tuning.space import applied

OWN = "ray"  # Tune's folder in the study's, while it runs
TINY = 0.01  # of a CPU, for a trial that only waits for its ranks
ABORT_S = 60.0


class Phase(Protocol):
    """What gives out jobs: the search, then the confirmation of its winner."""

    def next(self) -> Job | None: ...

    @property
    def finished(self) -> bool: ...

    def report(self, job: Job, run: int, epochs: Epochs) -> bool: ...

    def end(self, job: Job, failed: str | None = None) -> str: ...


class Feed(Searcher):
    """Gives Tune the jobs of the phases, one phase after the other, and tells the phases.

    It is asked in Tune's own loop, which trials wait for to go on: a task of Ray's would wait here
    for the CPU of a trial that waits for it. So `snapshots` are there for all that may be asked.
    """

    def __init__(
        self,
        phases: list[Phase],
        config: Config,
        snapshots: Mapping[FeatureConfig, str],
        folder: Path,
        identity: str,
        protected: Path | None,
    ) -> None:
        super().__init__()
        self.phases, self.config, self.snapshots = phases, config, snapshots
        self.folder, self.identity, self.protected = folder, identity, protected
        self.jobs: dict[str, tuple[Phase, Job]] = {}  # by Tune's id of a trial
        self.concurrent = concurrency(config)
        self.failed: dict[str, str] = {}  # why, by Tune's id
        self.failures, self.successes, self.why = 0, 0, ""

    def run(self) -> None:
        """Run every job that is left."""
        # what Tune itself would write of trials stands in the study
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        ray_tune.Tuner(
            ray_tune.with_resources(trial, _resources(self.config)),
            tune_config=ray_tune.TuneConfig(
                search_alg=self,
                scheduler=Judge(self),
                num_samples=-1,
                max_concurrent_trials=self.concurrent,
                # a process that has imported torch is worth seconds; one that waits for ranks is
                # not used again, as a stopped trial leaves it waiting
                reuse_actors=self.config.tune.workers == 1,
                trial_dirname_creator=str,
            ),
            run_config=ray_tune.RunConfig(
                name=OWN,
                storage_path=str(self.folder),
                verbose=0,
                failure_config=ray_tune.FailureConfig(max_failures=self.config.tune.max_failures),
                stop=Surrender(self),
            ),
        ).fit()
        shutil.rmtree(self.folder / OWN, ignore_errors=True)
        if self.hopeless:
            raise UserError(f"the first {self.failures} trials all failed: {self.why}")
        if not all(phase.finished for phase in self.phases):
            raise KeyboardInterrupt  # Tune ends by itself on the first one

    @property
    def hopeless(self) -> bool:
        """Whether so many trials have failed, and none not, that all would."""
        return self.successes == 0 and self.failures >= self.config.tune.give_up_after

    def suggest(self, trial_id: str) -> Any:
        """The next job; None to be asked again, when others have ended."""
        for phase in self.phases:
            job = phase.next()
            if job is not None:
                self.jobs[trial_id] = phase, job
                return self._assignment(job).model_dump(mode="json")
            if not phase.finished:
                return None
        return Searcher.FINISHED

    def judge(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether a trial ends here."""
        phase, job = self.jobs[trial_id]
        if FAILED in result:
            if not self.failures and not self.failed:
                say(result[TRACE].rstrip())  # once: the next ones are likely the same
            self.failed[trial_id] = result[FAILED]
            return True
        stop = phase.report(job, result[RUN], result[EPOCHS])
        if stop and CONTROLLER in result:
            _abort(result[CONTROLLER])
        return stop

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Close a job."""
        phase, job = self.jobs.pop(trial_id)
        failed = self.failed.pop(trial_id, "its process died" if error else None)
        if failed is None:
            self.successes += 1
        else:
            self.failures, self.why = self.failures + 1, failed
        say(f"tune: {phase.end(job, failed)}")
        shutil.rmtree(self._checkpoints(job), ignore_errors=True)

    def _assignment(self, job: Job) -> Assignment:
        ranks: dict[str, Any] = {"train.workers": self.config.tune.workers}
        if self.config.tune.workers == 1:  # of a process that no other shares weights with
            ranks["train.sharding"] = "ddp"
        config = applied(self.config, job.point | ranks)
        return Assignment(
            config=config,
            snapshot=self.snapshots[config.features],
            folder=str(self._checkpoints(job)),
            protected=None if self.protected is None else str(self.protected),
            runs=tuple(job.runs),
            folds=job.folds,
            share=job.share,
            at_once=self.concurrent,
        )

    def _checkpoints(self, job: Job) -> Path:
        """What a study of the same name trained at another time is not taken for this one's."""
        what = short_digest([job.point, self.identity])
        return self.folder / "checkpoints" / f"{job.key}-{what}"

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is the state."""


class Judge(FIFOScheduler):
    """Has the feed decide after every report of a trial."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.feed = feed

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Tune's word for it."""
        stop = self.feed.judge(trial.trial_id, result)
        word: str = self.STOP if stop else self.CONTINUE
        return word


class Surrender(ray_tune.Stopper):
    """Ends everything when all trials fail."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Trials are judged elsewhere."""
        return False

    def stop_all(self) -> bool:
        """Whether to end everything."""
        return self.feed.hopeless


def _abort(controller: bytes) -> None:
    """End the ranks of a trial, and give back what they hold.

    Tune would only end the process that waits for them. Ray Train then finds out by the state
    API, which a cluster without a dashboard has not: the next trials would wait for ever.
    """
    actor = cloudpickle.loads(controller)
    try:
        ray.get(actor.abort.remote(), timeout=ABORT_S)
    except RayActorError:  # so it ends
        return
    except GetTimeoutError:
        ray.kill(actor)


def concurrency(config: Config) -> int:
    """Trials at a time: as many as the cluster's CPUs and GPUs hold, and at least one.

    A machine's logical CPUs may be more than its cores, which trials and their ranks would then
    share. Ranks need a CPU beside them for Ray Data, or they wait for rows for ever.
    """
    tuned, total = config.tune, ray.cluster_resources()
    if tuned.concurrent is not None:
        return tuned.concurrent
    held: float
    cpus = total.get("CPU", 0.0)  # a head may have none until its first nodes come
    cores = min(cpus, os.cpu_count() or 1) if len(ray.nodes()) == 1 else cpus
    if tuned.workers > 1:
        of_ray = cpus / (tuned.workers * config.train.cpus_per_worker + 1)
        held, gpus_each = min(of_ray, cores / tuned.workers), float(tuned.workers)
    else:
        held, gpus_each = cores / tuned.cpus_per_trial, tuned.gpus_per_trial
    if on_gpus(config.train.gpu):
        held = min(held, total.get("GPU", 0.0) / gpus_each)
    return max(1, math.floor(held))


def _resources(config: Config) -> dict[str, float]:
    """What the process of a trial holds; one whose ranks are apart holds next to nothing."""
    if config.tune.workers > 1:
        return {"CPU": TINY}
    gpu = config.tune.gpus_per_trial if on_gpus(config.train.gpu) else 0
    return {"CPU": config.tune.cpus_per_trial, "GPU": gpu}
