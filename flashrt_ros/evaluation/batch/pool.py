"""Runs jobs: here, in processes of this machine, or through Ray, and tells how far they are.

A job's process keeps its policy, so jobs of one variant that follow each other load it once.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from flashrt_ros.errors import BackendError
from flashrt_ros.evaluation.batch.plan import Job
from flashrt_ros.evaluation.batch.work import Outcome, Worker

Told = Callable[[int, float], None]
"""(number of the job, seconds of its bag that are done)."""


@dataclass(frozen=True)
class Machine:
    """gpus: numbers of the GPUs to use, one process on each; empty for the CPU. processes: at once.

    threads: of the CPU for each process, or None for what the configuration says.
    """

    gpus: tuple[str, ...]
    processes: int
    threads: int | None


def this_machine(jobs: Sequence[Job], processes: int | None) -> Machine:
    """As many processes as there are GPUs, or cores for the threads of the policies, and never more than
    jobs."""
    cuda = any(job.variant.config.policy.device == 'cuda' for job in jobs if not job.choices.topics_only)
    gpus = visible_gpus() if cuda else ()
    cores = len(os.sched_getaffinity(0))
    threads = [job.variant.config.policy.threads for job in jobs]
    wanted = max((t for t in threads if t), default=cores)
    fitting = len(gpus) if cuda else max(1, cores // wanted)
    count = max(1, min(processes or fitting, len(jobs)))
    unset = None in threads and not cuda
    return Machine(gpus, count, max(1, cores // count) if unset and count > 1 else None)


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    if named is not None:
        return tuple(name for name in named.split(',') if name)
    import torch

    return tuple(str(i) for i in range(torch.cuda.device_count())) or ('0',)


def run_jobs(jobs: Sequence[Job], machine: Machine, told: Told) -> Iterator[tuple[int, Outcome]]:
    """(number of the job, outcome) in the order in which they end."""
    if machine.processes == 1:
        worker = Worker()
        for number, job in enumerate(jobs):
            yield number, worker.run(job, lambda seconds, number=number: told(number, seconds))  # type: ignore[misc]
        return
    # Spawned, because CUDA and torch's threads do not survive a fork.
    context = multiprocessing.get_context('spawn')
    with context.Manager() as manager:
        messages, gpus = manager.Queue(), manager.Queue()
        for i in range(machine.processes):
            gpus.put(machine.gpus[i % len(machine.gpus)] if machine.gpus else '')
        listener = threading.Thread(target=_listen, args=(messages, told), daemon=True)
        listener.start()
        pool = ProcessPoolExecutor(
            machine.processes, context, initializer=_begin, initargs=(gpus, machine.threads, messages)
        )
        try:
            futures = {pool.submit(_work, number, job): number for number, job in enumerate(jobs)}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            messages.put(None)
            listener.join()


def run_with_ray(jobs: Sequence[Job], address: str | None, told: Told) -> Iterator[tuple[int, Outcome]]:
    """The same on the machines of a Ray cluster, whose file system must hold bags, checkpoints and results.

    address: as `ray.init` takes it; None starts Ray on this machine. Raises BackendError without Ray.
    """
    try:
        import ray
    except ImportError:
        raise BackendError('Ray is not installed', '--ray', 'run: pip install ray') from None
    ray.init(address=address, include_dashboard=False, log_to_driver=False)
    try:
        remote = {}
        for number, job in enumerate(jobs):
            policy = job.variant.config.policy
            needs = {'num_gpus': 1} if policy.device == 'cuda' else {'num_cpus': policy.threads or 1}
            task = ray.remote(_run_alone).options(**needs)
            remote[task.remote(job)] = number
        waiting = list(remote)
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            number = remote[done]
            told(number, float('inf'))
            yield number, ray.get(done)
    finally:
        ray.shutdown()


def _run_alone(job: Job) -> Outcome:
    return Worker().run(job)


_worker: Worker
_messages: Any


def _begin(gpus: Any, threads: int | None, messages: Any) -> None:
    """Prepares a process of the pool."""
    global _worker, _messages
    gpu = gpus.get()
    if gpu:
        os.environ['CUDA_VISIBLE_DEVICES'] = gpu
    if threads:
        import torch

        torch.set_num_threads(threads)
    _worker, _messages = Worker(), messages


def _work(number: int, job: Job) -> Outcome:
    last = [0.0]

    def progress(seconds: float) -> None:
        if seconds - last[0] >= 0.5:
            last[0] = seconds
            _messages.put((number, seconds))

    return _worker.run(job, progress)


def _listen(messages: Any, told: Told) -> None:
    while (message := messages.get()) is not None:
        told(*message)
