"""Whether memory that something would take is there. Asks the system; allocates nothing."""

from __future__ import annotations

from pathlib import Path

import torch

_SPARE_BYTES = 2 << 30  # of either memory; what else a run needs now and then


def lacking_memory(host: int = 0, device: int = 0, where: torch.device | None = None) -> str:
    """Empty, or what would be missing: "would take … of host memory, of which … are left".

    Asking is the only way to know: host memory that is touched and not there ends the process, and
    a device that is full fails somewhere else later. What torch keeps for itself counts as free.
    """
    from . import doctor

    found = []
    free = doctor.free_memory(Path("/"))
    if host and free is not None and free - host < _SPARE_BYTES:
        found.append(("host", host, free))
    if device and where is not None and where.type == "cuda":
        free = torch.cuda.mem_get_info(where)[0]
        free += torch.cuda.memory_reserved(where) - torch.cuda.max_memory_allocated(where)
        if free - device < _SPARE_BYTES:
            found.append(("device", device, free))
    return " and ".join(
        f"would take {wanted / 2**30:.1f} GiB of {place} memory, of which "
        f"{max(free, 0) / 2**30:.1f} GiB are left"
        for place, wanted, free in found
    )
