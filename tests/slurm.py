"""A real Slurm of one node, without systemd, in a folder of its own."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for as long as its old credential lives, 120 s by default and 5 at least …
AuthInfo=socket={folder}/munge.socket,cred_expire=5
# … and then for the scheduler to come round, every 60 s by default.
SchedulerParameters=sched_interval=1
SchedulerType=sched/builtin
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
"""


def _environment() -> dict[str, str]:
    """Daemons are where users' PATH does not reach."""
    return os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def missing() -> list[str]:
    """The programs of Slurm and MUNGE that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_environment()["PATH"]) is None]


def wait_for(happened: Callable[[], object], what: str, limit: float = 120) -> None:
    """Wait until something is true."""
    end = time.monotonic() + limit
    while not happened():
        assert time.monotonic() < end, f"in {limit:.0f} s not seen: {what}"
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Slurm:
    """Asks the running Slurm about jobs."""

    def run(self, *command: str) -> str:
        """Run a command of Slurm's that must succeed; what it prints."""
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def job(self, job: str) -> dict[str, str]:
        """What Slurm says of a job (of an array's task, with its index): JobState, Reason, ExitCode, …"""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, state: str = "COMPLETED", limit: float = 200) -> dict[str, str]:
        """Wait until a job is over, and see that it ended in a state."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
        wait_for(lambda: self.job(job)["JobState"] in over, f"the end of job {job}", limit)
        found = self.job(job)
        assert found["JobState"] == state, f"{found}\n{Path(found['StdOut']).read_text()}"
        return found


@contextmanager
def running_slurm() -> Iterator[Slurm]:
    """Start MUNGE and Slurm, and end them whatever happens; SLURM_CONF points there meanwhile."""
    # Not in pytest's folder: a socket's path may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(folder=folder, host=host, user=getpass.getuser(), ports=_free_ports(2))
    )
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(configuration)
    munge = [f"--{part}={folder}/munge.{part.removesuffix('-file')}"
             for part in ("key-file", "socket", "pid-file", "log-file", "seed-file")]  # fmt: skip
    daemons = [["munged", "--force", "--foreground", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]]
    started = []
    try:
        for command in daemons:
            with (folder / f"{command[0]}.out").open("w") as out:
                started.append(subprocess.Popen(command, stdout=out, stderr=out, env=_environment()))
            if command[0] == "munged":
                wait_for((folder / "munge.socket").exists, "MUNGE's socket", 20)
        wait_for(lambda: _idle(folder), "an idle node", 60)
        yield Slurm()
    finally:
        subprocess.run(["scancel", "--full", f"--user={getpass.getuser()}", "--signal=KILL"], check=False)
        for daemon in reversed(started):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _idle(folder: Path) -> bool:
    for out in folder.glob("*.out"):
        assert "fatal" not in out.read_text(), out.read_text()
    found = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() == "idle"
