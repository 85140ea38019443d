"""A throwaway real SLURM on one machine.

    python slurm/sandbox/sandbox.py start
    eval "$(python slurm/sandbox/sandbox.py env)"
    python jobs/launch_grid.py cluster=slurm device=cpu
    python slurm/sandbox/sandbox.py stop

Needs root, the Debian packages of SLURM, munge and MariaDB, and Python 3.11; about five seconds. See README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import processes
import slurm_conf
from processes import Process
from slurm_conf import Options, Ports

T = TypeVar("T")

PACKAGES = "slurmctld slurmd slurmdbd slurm-client munge mariadb-server"
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "scontrol", "sacctmgr", "munged", "mariadbd", "mariadb-install-db")
START_TIMEOUT_S = 60
COMMAND_TIMEOUT_S = 30
PORTS = (20000, 32000)  # below those that Linux gives to outgoing connections


class SandboxError(RuntimeError):
    """A daemon or a command of the sandbox failed; one line."""


class Unsupported(SandboxError):
    """This machine or user cannot run such a sandbox; one line with what is missing."""


def default_folder() -> Path:
    return Path(tempfile.gettempdir()) / "transfergrid-slurm"


def check_machine(options: Options) -> None:
    """Raises Unsupported."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        install = f"apt-get update && apt-get install -y --no-install-recommends {PACKAGES}"
        raise Unsupported(f"not on the PATH: {', '.join(missing)}; on Debian: {install}")
    if os.geteuid() != 0:
        raise Unsupported(
            "the sandbox needs root: slurmd starts jobs as their users; run it with sudo, or in a container"
        )
    if options.cgroup_memory and _memory_cgroup_mount() is None and not _can_mount_memory_cgroup():
        raise Unsupported("no memory limits here: the cgroup v1 memory controller is neither mounted nor mountable")


def _memory_cgroup_mount() -> str | None:
    """The folder in which the cgroup v1 hierarchy `memory` is mounted: /sys/fs/cgroup for /sys/fs/cgroup/memory."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mountpoint, kind, flags = line.split()[:4]
        if kind == "cgroup" and "memory" in flags.split(",") and mountpoint.endswith("/memory"):
            return mountpoint.removesuffix("/memory")
    return None


def _can_mount_memory_cgroup() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "cgroup", "-o", "memory", "none", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True, capture_output=True)
    return True


def free_ports(count: int) -> list[int]:
    """Random ones: two sandboxes that start at one time rarely meet."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(*PORTS), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise SandboxError(f"no {count} free TCP ports between {PORTS[0]} and {PORTS[1]}")


def last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "(its log is empty)"


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
        return ("munged", *accounting, "slurmctld", *(f"slurmd-{node}" for node in self.nodes))

    @property
    def env(self) -> dict[str, str]:
        """This process's environment, with SLURM_CONF and no other variable of SLURM's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.conf)}

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
        if done.returncode:
            told = " ".join((done.stderr or done.stdout).split())
            raise SandboxError(f"`{' '.join(command)}` failed, exit {done.returncode}: {told}")
        return done.stdout

    def wait_for(self, predicate: Callable[[], T], timeout_s: float) -> T:
        """What `predicate` returns once it is true, asked five times a second. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not (found := predicate()):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"still {found!r} after {timeout_s:g} s: {getattr(predicate, '__name__', predicate)}"
                )
            time.sleep(0.2)
        return found

    def hurry(self) -> None:
        """Requeued jobs wait for two minutes (reason BeginTime): let them start now."""
        for line in self.run("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i|%r").splitlines():
            job, reason = line.split("|")
            if reason == "BeginTime":
                with contextlib.suppress(SandboxError):  # it may just have started, or gone
                    self.run("scontrol", "update", f"jobid={job}", "StartTime=now")

    # Its daemons: munged, mariadbd, slurmdbd, slurmctld, slurmd-n1, slurmd-n2, ...

    def start_daemon(self, daemon: str) -> None:
        """Start it and wait until it answers; nothing where it runs."""
        if self.process(daemon) is not None:
            return
        environment = {"PATH": slurm_conf.DAEMON_PATH, "HOME": "/root", "LANG": "C.UTF-8", "SLURM_CONF": str(self.conf)}
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
        self.wait_for(lambda: not processes.is_alive(process), 10)

    def kill_node(self, node: str) -> None:
        """End a node as a power cut does: its slurmd, its step daemons and its jobs' processes."""
        self._kill_all(lambda: processes.of_sandbox(self.dir, node=node))

    def pause(self, daemon: str) -> None:
        """Stop it from answering, as an overloaded one does (SIGSTOP)."""
        processes.send(self._running(daemon), signal.SIGSTOP)

    def resume(self, daemon: str) -> None:
        processes.send(self._running(daemon), signal.SIGCONT)

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
            return self._succeeds("scontrol", "-o", "show", "partition")
        return True  # slurmd: what matters is that its node gets idle

    def _succeeds(self, *command: str) -> bool:
        try:
            self.run(*command, timeout_s=10)
        except SandboxError:
            return False
        return True

    def _wait_until_ready(self, daemon: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers(daemon):
            self._check_alive(daemon)
            if time.monotonic() > deadline:
                raise SandboxError(f"{daemon}: no answer within {START_TIMEOUT_S} s; {last_line(self._log(daemon))}")
            time.sleep(0.1)

    def _check_alive(self, daemon: str) -> None:
        if self.process(daemon) is None:
            raise SandboxError(f"{daemon} ended: {last_line(self._log(daemon))}")

    # From nothing to idle nodes, and back

    def start(self, options: Options) -> None:
        """Ends when all nodes are idle. Raises SandboxError, having stopped everything, where a daemon fails."""
        check_machine(options)
        if self.dir.exists() and not self.exists() and any(self.dir.iterdir()):
            raise Unsupported(f"{self.dir} is not empty and no sandbox's; give another --dir")
        self.stop()
        try:
            self._write_files(options)
            if options.accounting:
                self._create_database()
            for daemon in self.daemons:
                self.start_daemon(daemon)
                if daemon == "slurmdbd":
                    self._create_accounts(options)
            self._wait_until_idle()
        except BaseException:
            self.stop()
            raise

    def _write_files(self, options: Options) -> None:
        for name in ("", "run", "log", "state", "spool", *(f"spool/{node}" for node in slurm_conf.node_names(options))):
            (self.dir / name).mkdir(parents=True, exist_ok=True)
        (self.dir / "sandbox.json").write_text(json.dumps(asdict(options)))
        slurmctld, slurmdbd, *slurmd = free_ports(2 + options.nodes)
        ports = Ports(slurmctld=slurmctld, slurmdbd=slurmdbd, slurmd=tuple(slurmd))
        mountpoint = _memory_cgroup_mount() or "/sys/fs/cgroup"
        if options.cgroup_memory and _memory_cgroup_mount() is None:
            mountpoint = str(self.dir / "cgroup")
            (self.dir / "cgroup" / "memory").mkdir(parents=True)
            self.run("mount", "-t", "cgroup", "-o", "memory", "none", f"{mountpoint}/memory")
        for number in range(options.gpus):
            os.mknod(self.dir / f"nvidia{number}", stat.S_IFCHR | 0o666, os.makedev(195, number))
        files = {
            "slurm.conf": slurm_conf.slurm_conf(options, ports, self.dir),
            "slurmdbd.conf": slurm_conf.slurmdbd_conf(ports, self.dir),
            "gres.conf": slurm_conf.gres_conf(options, self.dir),
            "cgroup.conf": slurm_conf.cgroup_conf(options, mountpoint),
        }
        for name, text in files.items():
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
        self.run("sacctmgr", "-i", "add", "cluster", "sandbox")
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
                lines = [last_line(self._log(f"slurmd-{node}")) for node in self.nodes if states.get(node) != "idle"]
                raise SandboxError(f"slurmd: nodes are {states} after {START_TIMEOUT_S} s; {lines[0]}")
            time.sleep(0.2)

    def node_states(self) -> dict[str, str]:
        """idle, mixed, allocated, down, ...: as sinfo says it, with its marks (`idle*`: does not answer)."""
        lines = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()
        return dict(line.split() for line in lines)

    def stop(self) -> None:
        """Cancel all jobs, end every process of the sandbox, remove the folder; nothing where there is none."""
        if not self.exists():
            return
        for process in processes.of_sandbox(self.dir):
            processes.send(process, signal.SIGCONT)
        if self.process("slurmctld") is not None:
            with contextlib.suppress(SandboxError, TimeoutError):
                self._cancel_jobs()
        # The folder goes with them, so there is nothing that they would have to write before.
        self._kill_all(lambda: processes.of_sandbox(self.dir))
        if self.options.cgroup_memory:
            self._remove_cgroups()
        (self.dir / "sandbox.json").rename(self.dir / "stopped.json")
        shutil.rmtree(self.dir)

    def _cancel_jobs(self) -> None:
        """With a few seconds for the jobs to end as they would on a real cluster."""
        jobs = self.run("squeue", "-h", "-o", "%A", timeout_s=5).split()
        if jobs:
            self.run("scancel", *sorted(set(jobs)), timeout_s=10)
            self.wait_for(lambda: not self.run("squeue", "-h", timeout_s=5), 3)

    def _kill_all(self, list_them: Callable[[], list[Process]]) -> None:
        """Again and again: one that dies may just have started another."""
        deadline = time.monotonic() + 20
        while left := list_them():
            for process in left:
                processes.send(process, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise SandboxError(f"processes that cannot be killed: {', '.join(str(each.pid) for each in left)}")
            time.sleep(0.1)

    def _remove_cgroups(self) -> None:
        """Empty ones of dead steps; those of other sandboxes are not empty, and stay."""
        root = Path(f"{_memory_cgroup_mount() or self.dir / 'cgroup'}/memory")
        own = self.dir / "cgroup" / "memory"
        first_job = int(re.findall(r"FirstJobId=(\d+)", self.conf.read_text())[0])
        for job in root.glob("slurm*/uid_*/job_*"):
            if first_job <= int(job.name.removeprefix("job_")) < first_job + 1000:
                for path, _, _ in os.walk(job, topdown=False):
                    os.rmdir(path)
        for folder in [*root.glob("slurm*/uid_*"), *root.glob("slurm*/system"), *root.glob("slurm*")]:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if own.is_mount():
            self.run("umount", str(own))


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A throwaway real SLURM on one machine.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    told = {
        "start": "start it; ends when all nodes are idle",
        "stop": "cancel all jobs, end all processes, remove the folder",
        "status": "its daemons and nodes",
        "env": "print the line that makes this shell use it",
    }
    default = Options()
    for verb, text in told.items():
        added = verbs.add_parser(verb, help=text, description=text)
        added.add_argument("--dir", type=Path, default=default_folder(), help="its folder (default: %(default)s)")
        if verb != "start":
            continue
        added.add_argument("--nodes", type=int, default=default.nodes, metavar="N")
        added.add_argument("--gpus", type=int, default=default.gpus, metavar="N", help="fake ones, per node")
        added.add_argument("--cpus", type=int, default=default.cpus, metavar="N", help="declared, per node")
        added.add_argument("--no-accounting", action="store_false", dest="accounting", help="no database, no sacct")
        added.add_argument("--max-array-size", type=int, default=default.max_array_size, metavar="N")
        added.add_argument("--cgroup-memory", action="store_true", help="enforce --mem (needs cgroup v1)")
        added.add_argument("--preempt", choices=("signal", "no-signal"), help="adds the partitions low and high")
        added.add_argument("--max-time-min", type=int, default=default.max_time_min, metavar="MIN", help="of `short`")
        added.add_argument("--kill-wait", type=int, default=default.kill_wait_s, dest="kill_wait_s", metavar="S")
        added.add_argument(
            "--slurmd-timeout", type=int, default=default.slurmd_timeout_s, dest="slurmd_timeout_s", metavar="S"
        )
        added.add_argument("--min-job-age", type=int, default=default.min_job_age_s, dest="min_job_age_s", metavar="S")
        added.add_argument(
            "--requeue-wait", type=int, default=default.requeue_wait_s, dest="requeue_wait_s", metavar="S"
        )
        added.add_argument("--max-submit-jobs", type=int, metavar="N", help="of the user root, enforced")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = vars(parse(arguments))
    verb, folder = given.pop("verb"), given.pop("dir")
    try:
        sandbox = Sandbox(folder)
        if verb == "start":
            return _start(sandbox, Options(**given))
        if verb == "stop":
            print("stopped" if sandbox.exists() else f"no sandbox in {sandbox.dir}")
            sandbox.stop()
            return 0
        if not sandbox.exists():
            print(f"no sandbox in {sandbox.dir}; `{sys.argv[0]} start` makes one", file=sys.stderr)
            return 1
        return _status(sandbox) if verb == "status" else _env(sandbox)
    except Unsupported as error:
        print(error, file=sys.stderr)
        return 2
    except SandboxError as error:
        print(error, file=sys.stderr)
        return 1


def _start(sandbox: Sandbox, options: Options) -> int:
    if sandbox.is_running():
        print(f"already running in {sandbox.dir}")
        return _env(sandbox)
    begun = time.monotonic()
    sandbox.start(options)
    print(f"# {len(sandbox.nodes)} nodes idle after {time.monotonic() - begun:.1f} s; to use them:")
    print(f'#   eval "$(python {sys.argv[0]} env)"')
    print("#   python jobs/launch_grid.py cluster=slurm device=cpu")
    return _env(sandbox)


def _env(sandbox: Sandbox) -> int:
    print(f"export SLURM_CONF={sandbox.conf}")
    return 0


def _status(sandbox: Sandbox) -> int:
    for daemon in sandbox.daemons:
        process = sandbox.process(daemon)
        print(f"{daemon:<12} {'dead' if process is None else f'pid {process.pid}'}")
    if sandbox.process("slurmctld") is not None:
        print(sandbox.run("sinfo"), end="")
    return 0 if sandbox.is_running() else 1


if __name__ == "__main__":
    sys.exit(main())
