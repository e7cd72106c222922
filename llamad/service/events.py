"""The events of llamad in the journal: name, message id, priority, and the fields each one always has.

The same ids stand in the message catalog and in docs/events.md; a test holds the three together. An id is
never used for another event.
"""

from __future__ import annotations

from llamad.frozen import dataclass


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
    EventKind("child-exited", "7af142b912844ce7ac95dceba429d982", "err", ("CAUSE", "FIX", "DEATH")),
    EventKind("restarting", "9b351a61c1b94b20a02d0b9e6f3f9676", "warning", ("CAUSE",)),
    EventKind("gave-up", "9139b1f022cd4238b69dccb85ede91db", "crit", ("CAUSE", "FIX")),
    EventKind("held-by-another", "9abc8c9a905d4f7096ee4aecff78cb81", "warning", ("CAUSE", "FIX")),
    EventKind("stopping", "0f4c598766e742028bb958dc79c864ed", "info", ()),
    EventKind("stopped", "56af700df2064cc7880e54e31871a5ec", "info", ()),
    EventKind("reload-applied", "6c5f7b137e3642efbef9a6ed75274e4f", "notice", ("CHANGED",)),
    EventKind("reload-refused", "db23e41609dd439695f6c9c4df0fc697", "err", ("CAUSE",)),
    EventKind("reload-reverted", "be8932cae5b44a779159ad2330c966e8", "err", ("CAUSE",)),
    EventKind("definition-removed", "530e88bfe8eb4bf18ae0d88860730fbf", "warning", ("CAUSE", "FIX")),
    EventKind("not-watched", "b6f34100b987495c923d135ed6ba26ad", "warning", ("CAUSE", "FIX")),
    EventKind("prompts-kept", "62c148b78dd64ce1a0b20adc33755b8f", "info", ("TOKENS",)),
    EventKind("waiting-for-device", "b9085d01ebe94be69e26bce7d53525cb", "warning", ("CAUSE", "FIX")),
    EventKind("no-device", "ab4df01672d044e3ad14ffcb1251c4c9", "err", ("CAUSE", "FIX")),
    EventKind("config-refused", "d010b03ff318473f8b5e9fa60e1df69a", "err", ("CAUSE",)),
    EventKind("model-file", "cd4be8fa7f9d4e12bfa65699987f78d9", "err", ("CAUSE", "FIX")),
    EventKind("serving-on-cpu", "e1f6f7af6398408492089691f9915e19", "warning", ("CAUSE",)),
    EventKind("lines-suppressed", "69bcee53c0244d3da1b4685e60647804", "warning", ()),
    EventKind("cache-full", "36ebfb4cb3ca4a3d927f8260219e97f5", "warning", ("CAUSE", "FIX")),
    EventKind(
        "stepped-down",
        "2b13d50cf3af4cf6876a571a9ca59a29",
        "warning",
        ("BYTES", "CAUSE", "CONTEXT", "DEVICE", "FORMER"),
    ),
    EventKind("context-grows", "f72886a0a4df41c5a1f72f83bbab57bc", "notice", ("CAUSE", "CONTEXT", "DEVICE", "FORMER")),
    EventKind("memory-taken", "6bb4fc41eaf84b3abee8132957be8bac", "warning", ("BYTES", "CAUSE", "DEVICE")),
    EventKind("no-progress", "2b365db763de41eea680e81bf81432bf", "err", ("CAUSE",)),
    EventKind("unkillable", "91e0ad48288747d4bc575124ae634a87", "err", ("CAUSE", "FIX")),
    EventKind("learned-lost", "2b6ee0753fb24d819218508a629a0edf", "warning", ("CAUSE",)),
    EventKind(
        "request",
        "eb5266dfb62647eaac6b4d546c38ba98",
        "info",
        (
            *("CACHED_TOKENS", "DURATION_MS", "FIRST_TOKEN_MS", "HOLD_MS", "OUTCOME", "OUTPUT_TOKENS"),
            *("PATH", "PROMPT_TOKENS", "REQUEST_ID", "STATUS"),
        ),
    ),
    EventKind("requests", "0de7bce635884442840c8831d8ee4b9a", "info", ("COUNT",)),
    EventKind("engine-replaced", "78ac4024b6424fb2b4056d5e56a5393b", "notice", ("CAUSE", "FIX")),
    EventKind("driver-upgraded", "631c0a69134d47d288e1f9fdcfbb66f3", "warning", ("CAUSE", "FIX")),
    EventKind("device-fault", "84054e2af3654c36a27ad1c3b4ca0ab0", "err", ("CAUSE", "FIX")),
    EventKind("resumed", "5bd64ac8c7fd4ad1802b9297c18c3285", "notice", ("CAUSE",)),
    EventKind("engine-config-present", "4b34764bf697423d8b93033f84efdb83", "warning", ()),
    EventKind("router-ready", "06f74194e1b944058dd055099473281a", "notice", ("CAUSE",)),
    EventKind("unloading", "9746811342a943caab134a48f7f98a1d", "notice", ("CAUSE",)),
    EventKind("not-loaded", "f969c81b6cdf4d4fa2569711aa7679ba", "err", ("CAUSE", "FIX")),
)

EVENTS: dict[str, EventKind] = {kind.name: kind for kind in _KINDS}

CAUSE_IDS: dict[str, str] = {
    "gpu-out-of-memory": "37c691f772834e71ba25dad0b5601a18",
    "gpu-out-of-memory-weights": "de6ae0ae99b34c32a60c0062a31b9376",
    "gpu-out-of-memory-context": "ea2254d5263c44c7893d799d6454baae",
    "gpu-out-of-memory-compute": "dce265bd8a96475f9a955cd65db4f1c3",
    "gpu-out-of-memory-vision": "d5ca464e88784864bfdc8032a4dca6d6",
    "gpu-out-of-memory-draft": "665429df60564c7297a39d6ffe532e71",
    "gpu-out-of-memory-warm-up": "b365c2858a7c453781adfdb2b232cc03",
    "gpu-out-of-memory-running": "7035fd51de2d4c45bf455a11b799dcd5",
    "gpu-out-of-memory-requests": "c2d93c9aea2c43f5b3280affcf7bc086",
    "host-out-of-memory": "2808132f1a3d46b08530891b5bf13085",
    "address-space": "8914db2cb1074c08bd8add58bfc48719",
    "too-many-tasks": "ee772c59ad804fc88124b9cb5cf6935a",
    "device-lost": "6b5d5db7ea3d4fe4a0555282b0b8f5b4",
    "device-lost-at-load": "cf3caa7cbc174ce982fa55ea996d3012",
    "gpu-error": "69cd74e7d81a4d5e9ba849b54a48ad1c",
    "no-device": "37025519aed04245b206a9baf0a18b69",
    "no-backend": "ff66dc03a25140e6af92a44fe1f2e5a4",
    "gpu-unsupported": "3a573caff5d94d9a9e5c858ff2faedd9",
    "model-missing": "e4ed442094a34a11ade38a715bfa7e1c",
    "model-bad": "f0910f0d64d947418a0fe793acb6d103",
    "model-unsupported": "ddcc212cf61e4a3e863a93d7793de72b",
    "bad-lora": "7dfe70d2c0314d81b26c6a8ab4c5bef5",
    "bad-draft": "5ddb2a34cdb44a25863b2ab41949459f",
    "bad-projector": "c18bdad0d0c74337a9fd865e8f4ab9de",
    "bad-flag": "f9d130a7bb15474db6d2c0e4130817b1",
    "bad-template": "71f20e73cc474e7ca5cbfb3bac3e39c1",
    "address-in-use": "c5e14d0bb9404234954e46a6ec140afb",
    "permission": "e8acaed8bede49099601d111d4b3c025",
    "not-executed": "f17ea35ae5e448d78fc999d23c798c5f",
    "not-spawned": "853a2f48550f4f7293118a2883ddd2a7",
    "crash": "135e9b4e3b5244ebb40a0b853f326a50",
    "without-a-word": "473f6e6eeb204dfba1e191a8d5c7a670",
    "exit": "61bdaf83785c4cba9a3cee5af7a6c92c",
    "killed": "4aa105d49f5642419aee914699e98ee9",
    "hang": "fb33198da707432da0c4389be9b34979",
    "start-stalled": "513a7f17c6d44a2fbb8d302658af6a88",
    "placement": "81dbb173310e43d09864af4a3a2ccdb5",
    "warm-up": "19b2b8a849644ecb8e08833dcf672d29",
    "stopped": "ef36d43cbae84ec3864bb92a5e710e83",
}
"""The event `child-exited` by the cause of death, each with an explanation of its own."""
