"""Who this process is among the workers of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """Rank facts of one worker process. `TF_CONFIG` must agree with them where there are several workers."""

    workers: int = 1
    rank: int = 0
    replicas_per_worker: int = 1
    gpus_per_worker: int = 0

    @property
    def replicas(self) -> int:
        """Replicas of the whole run."""
        return self.workers * self.replicas_per_worker

    @property
    def is_chief(self) -> bool:
        """The chief alone writes the run's folder."""
        return self.rank == 0
