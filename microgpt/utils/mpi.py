"""MPI, through mpi4py, and how mpiexec tells a process which one it is."""

from __future__ import annotations

import os
from types import ModuleType

from microgpt.utils.optional import require


def mpi() -> ModuleType:
    """The module `mpi4py.MPI`. `ImportError` says how to install it, or that it finds no MPI library."""
    try:
        require("mpi4py", "mpi")
        return require("mpi4py.MPI", "mpi")
    except RuntimeError:
        raise ImportError("mpi4py finds no MPI library: load the one of this cluster, or pip install mpich") from None


def launched() -> tuple[int, int]:
    """The number of this process, and how many there are, as mpiexec tells them; (0, 1) without it."""
    launchers = (
        ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI, MS-MPI
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # srun
    )
    for names in launchers:
        rank, size = (os.environ.get(name, "") for name in names)
        if rank.isdecimal() and size.isdecimal():
            return int(rank), int(size)
    return 0, 1
