"""Where shards are run: in this process, in processes of this machine, on a Dask cluster.

An engine has `submit(trials)`, which gives a future of `worker.run_shard`'s result,
`window` (shards to keep under way), `Died` (what is raised when workers are lost),
`restart`, `drop(futures)` and `close`.
"""

from __future__ import annotations

import os

from fsim.errors import ConfigError

ENGINES = ("serial", "loky", "dask")


class _Never(Exception):
    """What nothing raises."""


class _Later:
    """A shard that runs when its result is asked for."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def result(self):
        function, arguments = self._call
        return function(*arguments)


class Serial:
    """One shard after another in this process, each on several threads."""

    Died = _Never
    window = 1

    def __init__(self, campaign):
        self._campaign = campaign

    def submit(self, trials):
        return _Later(self._campaign.shard, trials)

    def restart(self) -> None:
        """Nothing to start again."""

    def drop(self, futures) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing to close."""


class Loky:
    """Processes of this machine through joblib's loky: spawned, never forked."""

    def __init__(self, task_json: str, options: dict, workers: int):
        from joblib.externals.loky.process_executor import BrokenProcessPool

        self.Died = BrokenProcessPool
        self.window = 2 * workers + 1
        self._call = task_json, options
        self._workers = workers
        self.restart()

    def submit(self, trials):
        from fsim.campaign.worker import run_shard

        try:
            return self._executor.submit(run_shard, *self._call, trials)
        except (self.Died, RuntimeError) as error:
            return _Failed(self.Died(str(error)))

    def restart(self) -> None:
        """New processes in place of those that are left."""
        from joblib.externals.loky import ProcessPoolExecutor

        if hasattr(self, "_executor"):
            self._executor.shutdown(wait=False, kill_workers=True)
        # Kernels of one worker use one thread; torch must not start as many as there are CPUs.
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
        self._executor = ProcessPoolExecutor(
            self._workers, env=threads, initializer=_ignore_interrupts
        )

    def drop(self, futures) -> None:
        """Shards that are no longer wanted."""
        for future in futures:
            future.cancel()

    def close(self) -> None:
        """End the processes."""
        self._executor.shutdown(wait=True)


def _ignore_interrupts() -> None:
    """A Ctrl-C reaches every process of the terminal; only the campaign decides what it means."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Failed:
    def __init__(self, error):
        self._error = error

    def result(self):
        raise self._error


class Dask:
    """Workers of a Dask distributed scheduler, which can read the same files."""

    def __init__(self, task_json: str, options: dict, scheduler: str):
        try:
            from distributed import Client
            from distributed.scheduler import KilledWorker
        except ImportError:
            raise ConfigError(
                "--engine dask needs the package distributed: pip install 'fsim[dask]'"
            ) from None
        try:
            self._client = Client(scheduler, timeout="20s", set_as_default=False)
        except (OSError, TimeoutError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"--scheduler must be the address of a running Dask scheduler, got {scheduler} "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
            ) from None
        from distributed import CancelledError

        self.Died = (KilledWorker, CancelledError)
        self._call = task_json, options

    @property
    def window(self) -> int:
        """Twice as many shards as there are threads of workers, and one."""
        return 2 * max(1, sum(self._client.nthreads().values())) + 1

    def submit(self, trials):
        from fsim.campaign.worker import run_shard

        return self._client.submit(run_shard, *self._call, trials, pure=False, retries=3)

    def restart(self) -> None:
        """The scheduler starts workers again, if something does."""

    def drop(self, futures) -> None:
        """Shards that are no longer wanted."""
        self._client.cancel(futures)

    def close(self) -> None:
        """Leave the cluster."""
        self._client.close()


def open_engine(name: str, campaign, *, workers: int | None, scheduler: str | None):
    """The engine called `name` for an opened campaign."""
    if name not in ENGINES:
        raise ConfigError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if (scheduler is not None) != (name == "dask"):
        raise ConfigError("--scheduler belongs to --engine dask, and that needs it")
    if workers is not None and name != "loky":
        raise ConfigError(f"--workers belongs to --engine loky, got --engine {name}")
    if name == "serial":
        return Serial(campaign)
    if name == "dask":
        return Dask(campaign.task_json, campaign.worker_options, scheduler)
    return Loky(campaign.task_json, campaign.worker_options, workers or _cpus())


def _cpus() -> int:
    from fsim.machine import cpus

    return max(1, cpus() or os.cpu_count() or 1)


