"""One sandbox: a SLURM of its own in a folder, its daemons, and how tests handle it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import machine
import processes
import slurm_conf
from machine import SandboxError, Unsupported
from processes import Process
from slurm_conf import Options, Ports

T = TypeVar("T")

# The whole environment of the daemons: jobs get their submitter's, never that of whoever started the sandbox.
DAEMON_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
START_TIMEOUT_S = 60
COMMAND_TIMEOUT_S = 30
SETTLED_AFTER_S = 2.0  # job credentials are dated by the second


def last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "(its log is empty)"


def _accepts(address: str | int) -> bool:
    """Does a server listen at this socket file, or TCP port?"""
    if isinstance(address, str):
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(address) == 0
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", address)) == 0


class Ended(SandboxError):
    """A daemon did not stay alive; one line with the last of its log."""


class Sandbox:
    """One sandbox in one folder. The folder is the state: any process may open it, look, or stop it."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder.absolute()
        self.conf = self.dir / "slurm.conf"
        if not re.fullmatch(r"/[A-Za-z0-9._/-]{1,79}", str(self.dir)):
            raise Unsupported(f"--dir {str(self.dir)!r}: at most 80 letters, digits and ._-/ (it names sockets)")

    # What it is

    @property
    def options(self) -> Options:
        return Options(**json.loads((self.dir / "sandbox.json").read_text()))

    @property
    def nodes(self) -> tuple[str, ...]:
        return slurm_conf.node_names(self.options)

    @property
    def daemons(self) -> tuple[str, ...]:
        """In starting order."""
        accounting = ("mariadbd", "slurmdbd") if self.options.accounting else ()
        shared = () if self.options.accounts_in else ("munged", *accounting)
        return (*shared, "slurmctld", *(f"slurmd-{node}" for node in self.nodes))

    @property
    def env(self) -> dict[str, str]:
        """This process's environment, with SLURM_CONF and no other variable of SLURM's."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH_"))}
        return {**variables, "SLURM_CONF": str(self.conf)}

    def exists(self) -> bool:
        return (self.dir / "sandbox.json").exists()

    def process(self, daemon: str) -> Process | None:
        """None where it does not run."""
        with contextlib.suppress(FileNotFoundError):
            pid, started = (self.dir / "run" / f"{daemon}.pid").read_text().split()
            remembered = Process(int(pid), int(started))
            return remembered if processes.is_alive(remembered) else None
        return None

    def is_running(self) -> bool:
        return self.exists() and all(self.process(daemon) for daemon in self.daemons)

    # Using it

    def run(self, *command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Standard output. Raises SandboxError where the command fails or hangs."""
        try:
            done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise SandboxError(f"`{' '.join(command)}` hangs: no end within {timeout_s:g} s") from None
        except FileNotFoundError:
            raise SandboxError(f"`{' '.join(command)}`: {command[0]} is not on the PATH") from None
        if done.returncode:
            words = " ".join((done.stderr or done.stdout).split())
            raise SandboxError(f"`{' '.join(command)}` failed, exit {done.returncode}: {words}")
        return done.stdout

    def wait_for(self, predicate: Callable[[], T], timeout_s: float) -> T:
        """What `predicate` returns once it is true, asked five times a second. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not (value := predicate()):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"still {value!r} after {timeout_s:g} s: {getattr(predicate, '__name__', predicate)}"
                )
            time.sleep(0.2)
        return value

    def hurry(self) -> None:
        """Requeued jobs wait for two minutes (reason BeginTime): let them start now. Their time is set once more when
        their last processes have ended, so ask again until they run. One that went back within this second or the last
        is left: what it was allowed to do has just been taken back, and a start with the same second on it counts as
        taken back too; the node would refuse it ("Job credential revoked") and the job would end as FAILED."""
        for line in self.run("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i|%r|%V").splitlines():
            job, reason, submitted = line.split("|")
            waited_s = (datetime.now() - datetime.fromisoformat(submitted)).total_seconds()
            if reason == "BeginTime" and waited_s >= SETTLED_AFTER_S:
                with contextlib.suppress(SandboxError):  # it may just have started, or gone
                    self.run("scontrol", "update", f"jobid={job}", "StartTime=now")

    def wait_until_saved(self) -> None:
        """Until the controller has written to disk what it knows now. Killed earlier, it forgets the last seconds."""
        # With nothing new to write it writes nothing, so that one would wait in vain.
        self.run("scancel", self.run("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true").strip())
        now = time.time()
        saved = self.dir / "state" / "job_state"
        self.wait_for(lambda: saved.exists() and saved.stat().st_mtime > now, 30)

    def node_states(self) -> dict[str, str]:
        """n1 -> idle, mixed, allocated, down, ...: as sinfo says it, with its marks (`idle*`: does not answer)."""
        lines = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()
        return dict(line.split() for line in lines)

    # Its daemons: munged, mariadbd, slurmdbd, slurmctld, slurmd-n1, slurmd-n2, ...

    def start_daemon(self, daemon: str) -> None:
        """Start it and wait until it answers; nothing where it runs. One that is killed and started anew may meet what
        its predecessor has not yet let go (a port, the file of its pid), and end: it gets two more chances."""
        for _ in range(2):
            with contextlib.suppress(Ended):
                return self._start_daemon(daemon)
            time.sleep(1)
        self._start_daemon(daemon)

    def _start_daemon(self, daemon: str) -> None:
        if self.process(daemon) is not None:
            return
        environment = {**DAEMON_ENVIRONMENT, "SLURM_CONF": str(self.conf)}
        if daemon == "slurmdbd":
            environment["MYSQL_UNIX_PORT"] = str(self.dir / "run" / "mariadb.socket")
        argv = self._command(daemon)
        program = shutil.which(argv[0])
        if program is None:
            raise Unsupported(f"not on the PATH: {argv[0]}")
        pid = processes.spawn([program, *argv[1:]], environment=environment, log=self._log(daemon))
        process = processes.identify(pid)
        if process is not None:
            (self.dir / "run" / f"{daemon}.pid").write_text(f"{process.pid} {process.started}\n")
        self._wait_until_ready(daemon)

    def kill_daemon(self, daemon: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End it alone, and wait until it is gone: jobs go on."""
        process = self._running(daemon)
        processes.send(process, number)
        self.wait_for(lambda: not processes.is_alive(process), 60)  # not before the disk has what it was writing

    def kill_node(self, node: str) -> None:
        """End a node as a power cut does: its slurmd, its step daemons and its jobs' processes. SLURM notices after
        SlurmdTimeout, or when the slurmd is started again and the jobs that it misses are older than 20 seconds."""
        self._kill_all(lambda: processes.of_sandbox(self.dir, node=node))

    def pause(self, daemon: str) -> None:
        """Stop it from answering, as an overloaded one does (SIGSTOP)."""
        processes.send(self._running(daemon), signal.SIGSTOP)

    def resume(self, daemon: str) -> None:
        processes.send(self._running(daemon), signal.SIGCONT)

    def restore(self) -> None:
        """Resume and restart what was paused or killed."""
        for daemon in self.daemons:
            process = self.process(daemon)
            if process is not None:
                processes.send(process, signal.SIGCONT)
            self.start_daemon(daemon)
        self._wait_until_ready("slurmctld")

    def _running(self, daemon: str) -> Process:
        if daemon not in self.daemons:
            raise SandboxError(f"no daemon {daemon!r} in this sandbox; it has {', '.join(self.daemons)}")
        process = self.process(daemon)
        if process is None:
            raise SandboxError(f"{daemon} does not run")
        return process

    def _log(self, daemon: str) -> Path:
        return self.dir / "log" / f"{daemon}.log"

    def _command(self, daemon: str) -> list[str]:
        run = self.dir / "run"
        if daemon == "munged":
            files = [f"--{kind}-file={run}/munge.{kind}" for kind in ("key", "pid", "seed", "log")]
            return ["munged", "--foreground", "--force", f"--socket={run}/munge.socket", *files]
        if daemon == "mariadbd":
            return [
                *("mariadbd", "--no-defaults", "--user=root", f"--datadir={self.dir}/db", f"--tmpdir={self.dir}/db"),
                *(f"--socket={run}/mariadb.socket", f"--pid-file={run}/mariadbd.own.pid", "--skip-networking"),
                *("--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"),
            ]
        if daemon.startswith("slurmd-"):
            return ["slurmd", "-D", "-f", str(self.conf), "-N", daemon.removeprefix("slurmd-")]
        return [daemon, "-D"]

    def _answers(self, daemon: str) -> bool:
        if daemon == "munged":
            return (self.dir / "run" / "munge.socket").exists()
        if daemon == "mariadbd":
            return _accepts(str(self.dir / "run" / "mariadb.socket"))
        if daemon == "slurmdbd":
            return self._succeeds("sacctmgr", "-n", "list", "cluster")
        if daemon == "slurmctld":
            port = re.search(r"SlurmctldPort=(\d+)", self.conf.read_text())
            # Nobody at the port: not asked further, because scontrol would try again for seconds.
            return port is not None and _accepts(int(port[1])) and self._succeeds("scontrol", "-o", "show", "partition")
        return True  # slurmd: what matters is that its node gets idle

    def _succeeds(self, *command: str) -> bool:
        try:
            self.run(*command, timeout_s=10)
        except SandboxError:
            return False
        return True

    def _wait_until_ready(self, daemon: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self._check_alive(daemon)
            if self._answers(daemon):
                return
            if time.monotonic() > deadline:
                raise SandboxError(f"{daemon}: no answer within {START_TIMEOUT_S} s; {last_line(self._log(daemon))}")
            time.sleep(0.1)

    def _check_alive(self, daemon: str) -> None:
        if self.process(daemon) is None:
            raise Ended(f"{daemon} ended: {last_line(self._log(daemon))}")

    # From nothing to idle nodes, and back

    def start(self, options: Options) -> None:
        """Ends when all nodes are idle; what is left of a dead sandbox is cleared away first. Raises Unsupported, and
        SandboxError, having stopped everything, where a daemon fails."""
        machine.check(memory_limits=options.cgroup_memory)
        if self.dir.exists() and not self.exists() and any(self.dir.iterdir()):
            raise Unsupported(f"{self.dir} is not empty and no sandbox's; give another --dir")
        self.dir.mkdir(parents=True, exist_ok=True)
        with self._sole_starter():
            self._clear()
            try:
                self._write_files(options)
                if options.accounts_in:
                    self._create_accounts(options)
                elif options.accounting:
                    self._create_database()
                for daemon in self.daemons:
                    self.start_daemon(daemon)
                    if daemon == "slurmdbd":
                        self._create_accounts(options)
                self._wait_until_idle()
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Cancel all jobs, end every process of the sandbox, remove the folder; nothing where there is none."""
        if self.exists():
            self._clear()
            self.dir.rmdir()

    @contextlib.contextmanager
    def _sole_starter(self) -> Iterator[None]:
        lock = os.open(self.dir, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise SandboxError(f"{self.dir}: another process is just starting it") from None
        finally:
            os.close(lock)

    def _clear(self) -> None:
        if not self.exists():
            return
        for process in processes.of_sandbox(self.dir):
            processes.send(process, signal.SIGCONT)  # some may be paused
        if self.process("slurmctld") is not None:
            with contextlib.suppress(SandboxError, TimeoutError):
                self._cancel_jobs()
        # The folder goes with them, so there is nothing that they would have to write before.
        self._kill_all(lambda: processes.of_sandbox(self.dir))
        self._leave_cgroups()
        marker = self.dir / "sandbox.json"
        for path in self.dir.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != marker:
                path.unlink()
        marker.unlink()  # last: until then the folder is known as a sandbox's, and can be cleared again

    def _write_files(self, options: Options) -> None:
        (self.dir / "sandbox.json").write_text(json.dumps(asdict(options)))
        for name in ("run", "log", "state", *(f"spool/{node}" for node in self.nodes)):
            (self.dir / name).mkdir(parents=True)
        cgroups = machine.memory_cgroups()
        if options.cgroup_memory and cgroups is None:
            cgroups = self.dir / "cgroup" / "memory"
            cgroups.mkdir(parents=True)
            machine.mount_memory_cgroups(cgroups)
        for number in range(options.gpus):
            try:
                os.mknod(self.dir / f"nvidia{number}", stat.S_IFCHR | 0o666, os.makedev(195, number))
            except PermissionError:
                raise Unsupported("this container may not make device files (mknod): --gpus 0 works") from None
        slurmctld, slurmdbd, *slurmd = machine.free_ports(2 + options.nodes)
        if options.accounts_in:
            text = (Path(options.accounts_in) / "slurm.conf").read_text()
            slurmdbd = int(text.partition("AccountingStoragePort=")[2].split()[0])
        ports = Ports(slurmctld=slurmctld, slurmdbd=slurmdbd, slurmd=tuple(slurmd))
        for name, text in slurm_conf.files(options, ports, self.dir, cgroups).items():
            (self.dir / name).write_text(text)
        (self.dir / "slurmdbd.conf").chmod(0o600)  # slurmdbd insists
        key = self.dir / "run" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)

    def _create_database(self) -> None:
        self.run(
            *("mariadb-install-db", "--no-defaults", f"--datadir={self.dir}/db", "--user=root", "--skip-test-db"),
            *("--auth-root-authentication-method=normal", "--skip-name-resolve", "--innodb-log-file-size=8M"),
        )

    def _create_accounts(self, options: Options) -> None:
        """The user root, in the account `default`, with the QOS normal and long."""
        self.run("sacctmgr", "-i", "add", "cluster", options.cluster_name)
        if options.accounts_in is None:
            self.run("sacctmgr", "-i", "add", "qos", "long")
        self.run("sacctmgr", "-i", "add", "account", "default", "Description=default", "Organization=default")
        self.run("sacctmgr", "-i", "add", "user", "root", "Account=default")
        self.run("sacctmgr", "-i", "modify", "user", "root", "set", "DefaultAccount=default")
        limits = ["QOS=normal,long", "DefaultQOS=normal"]
        if options.max_submit_jobs is not None:
            limits.append(f"MaxSubmitJobs={options.max_submit_jobs}")
        self.run("sacctmgr", "-i", "modify", "user", "root", "set", *limits)

    def _wait_until_idle(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while (states := self.node_states()) != dict.fromkeys(self.nodes, "idle"):
            for daemon in self.daemons:
                self._check_alive(daemon)
            if time.monotonic() > deadline:
                late = next(node for node in self.nodes if states.get(node) != "idle")
                state = f"{states.get(late)} after {START_TIMEOUT_S} s; {last_line(self._log(f'slurmd-{late}'))}"
                raise SandboxError(f"slurmd-{late}: the node is {state}")
            time.sleep(0.2)

    def _cancel_jobs(self) -> None:
        """With a few seconds for the jobs to end as they would on a real cluster."""
        jobs = self.run("squeue", "-h", "-o", "%A", timeout_s=5).split()
        if jobs:
            self.run("scancel", *sorted(set(jobs)), timeout_s=10)
            self.wait_for(lambda: not self.run("squeue", "-h", timeout_s=5), 3)

    def _kill_all(self, list_them: Callable[[], list[Process]]) -> None:
        """Again and again: one that dies may just have started another."""
        deadline = time.monotonic() + 20
        while living := list_them():
            for process in living:
                processes.send(process, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise SandboxError(f"processes that cannot be killed: {', '.join(str(each.pid) for each in living)}")
            time.sleep(0.1)

    def _leave_cgroups(self) -> None:
        own = self.dir / "cgroup" / "memory"
        root = own if own.is_mount() else machine.memory_cgroups()
        first_job = re.search(r"FirstJobId=(\d+)", self.conf.read_text()) if self.conf.exists() else None
        if root is not None and first_job is not None:
            start = int(first_job[1])
            machine.remove_job_cgroups(root, range(start, start + slurm_conf.JOB_IDS))
        if own.is_mount():
            self.run("umount", str(own))
