"""The job that this process is a rank of, as far as the environment and torch.distributed say; no messages are sent."""

import os

import torch.distributed

_LOCAL_RANK = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")


def is_first_of_node() -> bool:
    """Whether this is the process that speaks for its node; where nobody says, rank 0 speaks for all."""
    for variable in _LOCAL_RANK:
        if variable in os.environ:
            return os.environ[variable] == "0"
    return not _is_initialized() or torch.distributed.get_rank() == 0


def is_job() -> bool:
    """Whether several processes train one model."""
    if _is_initialized():
        return torch.distributed.get_world_size() > 1
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in os.environ


def _is_initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
