"""The snapshot contract: what must hold of the live process tree before it is sealed, one module a kind of evidence.

May import hooks.http and supervisor.
"""

from hooks.contract.findings import ContractBroken, ContractUnseen, Finding
from hooks.contract.step import SnapshotContract

__all__ = ["ContractBroken", "ContractUnseen", "Finding", "SnapshotContract"]
