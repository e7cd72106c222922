"""The events of llamad in the journal: name, message id, priority, and the fields each one always has.

The same ids stand in the message catalog and in docs/events.md; a test holds the three together. An id is
never used for another event.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EventKind:
    """One kind of record."""

    name: str
    message_id: str
    priority: str
    fields: tuple[str, ...]


_KINDS = (
    EventKind("ready", "59d7a2fb5abf4a01ac5a26d59ff8cac7", "notice", ("CONTEXT", "DEVICE")),
    EventKind("planned", "0570f25aab4e4924b12c783700c7d302", "info", ("CONTEXT", "DEVICE")),
    EventKind("loading", "26518917d3984ae9865caeb77735c8ef", "info", ("DEVICE",)),
    EventKind("waiting-for-memory", "44ed8027c9f840b9a0b47d23f273282a", "notice", ("CAUSE",)),
    EventKind("memory-granted", "0b9a14af52db4d6f82548446154eca51", "notice", ()),
    EventKind("gave-up-waiting", "69071a0733824c4ab5fbddb7eb314e64", "warning", ("CAUSE", "FIX")),
    EventKind("ledger-problem", "4937419c756a4783a31d8e22cdbde87b", "warning", ("CAUSE",)),
    EventKind("start-stalled", "3b080baa17264c51beffd18a914c1918", "err", ()),
    EventKind("placement-mismatch", "22b5363a272649c3baf1461793060130", "err", ("CAUSE", "DEVICE", "FIX")),
    EventKind("warm-up-failed", "733e5584be3e4bc4bb391a55015784a9", "err", ("CAUSE",)),
    EventKind("child-exited", "7af142b912844ce7ac95dceba429d982", "err", ("CAUSE", "FIX")),
    EventKind("restarting", "9b351a61c1b94b20a02d0b9e6f3f9676", "warning", ("CAUSE",)),
    EventKind("gave-up", "9139b1f022cd4238b69dccb85ede91db", "crit", ("CAUSE", "FIX")),
    EventKind("held-by-another", "9abc8c9a905d4f7096ee4aecff78cb81", "warning", ("CAUSE", "FIX")),
    EventKind("stopping", "0f4c598766e742028bb958dc79c864ed", "info", ()),
    EventKind("stopped", "56af700df2064cc7880e54e31871a5ec", "info", ()),
    EventKind("reload-applied", "6c5f7b137e3642efbef9a6ed75274e4f", "notice", ()),
    EventKind("reload-refused", "db23e41609dd439695f6c9c4df0fc697", "err", ("CAUSE",)),
    EventKind("reload-reverted", "be8932cae5b44a779159ad2330c966e8", "err", ("CAUSE",)),
    EventKind("waiting-for-device", "b9085d01ebe94be69e26bce7d53525cb", "warning", ("CAUSE", "FIX")),
    EventKind("no-device", "ab4df01672d044e3ad14ffcb1251c4c9", "err", ("CAUSE", "FIX")),
    EventKind("config-refused", "d010b03ff318473f8b5e9fa60e1df69a", "err", ("CAUSE",)),
    EventKind("model-file", "cd4be8fa7f9d4e12bfa65699987f78d9", "err", ("CAUSE", "FIX")),
    EventKind("serving-on-cpu", "e1f6f7af6398408492089691f9915e19", "warning", ("CAUSE",)),
    EventKind("lines-suppressed", "69bcee53c0244d3da1b4685e60647804", "warning", ()),
    EventKind("engine-config-present", "4b34764bf697423d8b93033f84efdb83", "warning", ()),
)

EVENTS: dict[str, EventKind] = {kind.name: kind for kind in _KINDS}
