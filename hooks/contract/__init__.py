"""The snapshot contract: what must hold of the live process tree before it is sealed into a memory snapshot.

A snapshot carries memory, and nothing that memory refers to: an open connection, a deleted file, a request that is half
answered are lost or wrong after the restore. So the tree is looked at before the seal, and each thing that a snapshot
cannot carry is a `Finding`, with the process, the place and what to do.

One module a kind of evidence: `files`, `sharing`, `sockets`, `requests`, `environment`. `tree` reads /proc, `findings`
has the results, `step` is the Step. May import hooks.http and supervisor.
"""

from hooks.contract.findings import ContractBroken, ContractUnseen, Finding
from hooks.contract.step import SnapshotContract

__all__ = ["ContractBroken", "ContractUnseen", "Finding", "SnapshotContract"]
