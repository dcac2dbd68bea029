"""Brings everything up, lets the time pass, reads the processes now and then, and says what came of it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor

from benchmarks.e2e.machine import describe
from benchmarks.soak import process
from benchmarks.soak.report import report
from benchmarks.soak.robot import PERIOD_NS, SECOND, write_robot
from benchmarks.soak.witness import Grid, Witness
from benchmarks.soak.world import World
from demo.children import Child, ChildDied, Family
from demo.lifecycle import ACTIVATE, CONFIGURE, Lifecycle

APPEAR_S, CHANGE_S, MOTION_S = 90.0, 120.0, 60.0
NODES = ('action_streamer', 'policy_node')
TAIL_S = 1.5
"""The next diagnostics come within a second."""


class Soak:
    """One run. ended: why, once it has."""

    def __init__(self, folder: Path, logs: Path, speed: float) -> None:
        rclpy.init()
        self.ended = ''
        self.speed = speed
        self._interrupted = False
        self._node, self._executor = rclpy.create_node('soak'), SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._family = Family(logs)
        self.grid = Grid(PERIOD_NS)
        self.witness = Witness(self._node, self.grid, lambda: self.world.now_ns)
        self.world = World(self._node, speed, self.witness)
        self._thread = threading.Thread(target=self.world.run)
        self._children: list[Child] = []
        self.series: dict[str, dict[str, list[float]]] = {}
        self.hours: list[float] = []
        self.begin_ns, self.begin_s = 0, 0.0
        self.took_s = self.pressed_before_s = 0.0
        self.chunks_before = 0
        self.before: dict[str, str] = {}
        self._config = write_robot(folder)

    def bring_up(self) -> None:
        """Until commands come."""
        self._thread.start()
        options = ['--ros-args', '-p', f'config:={self._config}', '-p', 'use_sim_time:=true']
        self._children = [self._family.start(name, f'flashrt_ros.nodes.{name}', options) for name in NODES]
        for pid in (os.getpid(), *(child.process.pid for child in self._children)):
            process.raise_group(pid)
        nodes = [Lifecycle(self._node, self._executor, child, self._family.check) for child in self._children]
        for one in nodes:
            one.appear(APPEAR_S)
        for one in nodes:
            one.change(CONFIGURE, CHANGE_S)
        for one in nodes:
            one.change(ACTIVATE, CHANGE_S)
        deadline = time.monotonic() + MOTION_S
        while self.grid.origin is None:
            self._family.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f'no command came within {MOTION_S:g} s; see the logs of the nodes')
            self._executor.spin_once(timeout_sec=0.1)
        self.world.streamer = self._children[0].process.pid
        self._spin(TAIL_S)

    def _spin(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.1)

    def pass_time(self, hours: float, every_s: float) -> None:
        """Until so many simulated hours have passed since the first command, or something ends it."""
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, self._interrupt)
        self.begin_ns, self.begin_s = self.world.now_ns, time.monotonic()
        self.world.limit_ns = self.begin_ns + round(hours * 3600 * SECOND)
        next_reading = self.begin_s
        self.before = dict(self.witness.of('/action_streamer'))
        self.chunks_before, self.pressed_before_s = self.witness.chunks, process.pressure()
        while self._thread.is_alive() and not self._interrupted:
            self._executor.spin_once(timeout_sec=0.1)
            now = time.monotonic()
            if now >= next_reading:
                next_reading += every_s
                try:
                    self._family.check()
                    self._read()
                except (ChildDied, FileNotFoundError) as error:
                    self.ended = str(error)
                    break
        self.ended = self.ended or ('interrupted' if self._interrupted else 'at the end of its time')
        self.took_s = time.monotonic() - self.begin_s
        self.world.stop.set()
        self._spin(TAIL_S)

    def close(self) -> None:
        self.world.stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._family.end()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown()

    def _interrupt(self, number: int, frame: object) -> None:
        self._interrupted = True

    def _read(self) -> None:
        hour = (self.world.now_ns - self.begin_ns) / SECOND / 3600
        self.hours.append(hour)
        said = []
        for child in self._children:
            reading = process.read(child.process.pid)
            series = self.series.setdefault(child.name, {key: [] for key in reading._fields})
            for key, value in reading._asdict().items():
                series[key].append(value)
            said.append(
                f'{child.name} {reading.rss_mib:.1f} MiB, {reading.threads} threads, {reading.files} files'
            )
        passed_s = time.monotonic() - self.begin_s
        speed = hour * 3600 / passed_s if passed_s > 1 else 0.0
        grid = self.grid
        print(
            f'{hour:6.2f} h  {speed:4.1f} x  {grid.count} commands, {grid.missed} missed, '
            f'{self.world.held} holds  {self.witness.chunks} chunks  ' + '  '.join(said),
            flush=True,
        )


def soak(folder: Path, logs: Path, hours: float, speed: float, every_s: float) -> dict[str, Any]:
    """Returns the report."""
    run = Soak(folder, logs, speed)
    machine = describe('cpu')
    try:
        run.bring_up()
        run.pass_time(hours, every_s)
        return {'machine': machine, 'hours': hours, 'speed': speed, **report(run)}
    finally:
        run.close()
