"""What the words mean with which sbatch and the other commands fail."""

from __future__ import annotations

import pytest

from transfergrid.cluster.slurm_words import Answer, answer

FAILED = "sbatch: error: Batch job submission failed: "
POLICY = FAILED + "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
# What sbatch of slurm 22.05 to 25.05 prints on its standard error.
REPLAYED = {
    Answer.REFUSED: (
        "sbatch: error: invalid partition specified: gpuu\n" + FAILED + "Invalid partition name specified",
        FAILED + "Invalid account or account/partition combination specified",
        FAILED + "Invalid qos specification",
        FAILED + "Invalid wckey specification",
        "sbatch: error: Memory specification can not be satisfied\n"
        + FAILED
        + "Requested node configuration is not available",
        FAILED + "Requested time limit is invalid (missing or exceeds some limit)",
        FAILED + "User's group not permitted to use this partition",
        FAILED + "Invalid feature specification",
        FAILED + "Invalid generic resource (gres) specification",
        FAILED + "Invalid job array specification",
        FAILED + "Job dependency problem",
        FAILED + "Requested reservation is invalid",
        "sbatch: error: AssocMaxWallDurationPerJobLimit\n" + POLICY,
        "sbatch: error: QOSMinGRES\n" + POLICY,
        POLICY,
        "sbatch: unrecognized option '--foo=bar'\nTry \"sbatch --help\" for more information",
        "sbatch: fatal: --mem, --mem-per-cpu, and --mem-per-gpu are mutually exclusive.",
        "sbatch: error: Invalid --time specification",
        "sbatch: error: Slurm controller not responding, sleeping and retrying\n"
        + FAILED
        + "Invalid qos specification",
    ),
    Answer.NO_ROOM: (
        "sbatch: error: AssocMaxSubmitJobLimit\n" + POLICY,
        "sbatch: error: AssocGrpSubmitJobsLimit\n" + POLICY,
        "sbatch: error: QOSMaxSubmitJobPerUserLimit\n" + POLICY,
        "sbatch: error: QOSMaxSubmitJobPerAccountLimit\n" + POLICY,
        "sbatch: error: QOSGrpSubmitJobsLimit\n" + POLICY,
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
        + FAILED
        + "Resource temporarily unavailable",
    ),
    Answer.SILENCE: (
        FAILED + "Unable to contact slurm controller (connect failure)",
        FAILED + "Socket timed out on send/recv operation",
        FAILED + "Unexpected message received",
        FAILED + "Zero Bytes were transmitted or received",
        FAILED + "Header lengths are longer than data received",
        FAILED + "Message receive failure",
        FAILED + "Connection reset by peer",
        FAILED + "Slurm backup controller in standby mode",
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "slurm_load_jobs error: Transport endpoint is not connected",
        "sacct: error: Problem talking to the database: Connection refused",
        "sbatch: error: Invalid account, says an old note\n" + FAILED + "Socket timed out on send/recv operation",
    ),
    Answer.UNKNOWN: (
        FAILED + "Unspecified error",
        FAILED + "Protocol authentication error",
        FAILED + "Slurm internal error, contact system administrator",
        "sbatch: error: lua: project code missing\n" + FAILED + "Unspecified error",
        "Wartungsarbeiten am Montag",
        "",
    ),
}


@pytest.mark.parametrize(("expected", "said"), [(kind, said) for kind, texts in REPLAYED.items() for said in texts])
def test_what_a_command_says_when_it_fails_is_told_apart(expected: Answer, said: str) -> None:
    assert answer(said) is expected
    assert answer(" ".join(said.split())) is expected  # as submitit passes it on
