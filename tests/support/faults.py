"""The list of faults that llamad must survive, and what holds each: the names of tests, and a deadline in each.

`tests/unit/test_fault_list.py` looks whether every row has tests that exist. `bench/faults` prints the list.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One row. `tests` are `FILE::FUNCTION` below tests/; those of `test_faults.py` are made of `PROVOCATIONS`."""

    name: str
    title: str
    must_hold: str
    tests: tuple[str, ...] = ()
    needs_gpu: str = ""
    """What of it only a real GPU shows."""
    not_yet: str = ""
    """Why it cannot be held yet."""

    @property
    def elsewhere(self) -> str:
        """For a row that is not provoked on units: what holds it."""
        if self.not_yet:
            return f"not counted: {self.not_yet}"
        if not self.tests:
            return f"needs a real GPU: {self.needs_gpu}"
        return f"held by {', '.join(sorted({test.partition('::')[0] for test in self.tests}))}"


def on_units(*names: str) -> tuple[str, ...]:
    """Provocations of `test_faults.py`."""
    return tuple(f"system/test_faults.py::{name}" for name in names)


_S, _F = "unit/test_supervisor.py::test_", "unit/test_faults.py::test_"

FAULTS = (
    Fault(
        "child-dies", "llama-server gets SIGKILL or SIGSEGV, or exits with 1",
        "another one is started within 1 s and the back-off; the cause is named",
        (f"{_S}a_killed_child_is_replaced_and_requests_are_held_meanwhile", f"{_F}every_way_to_die_is_answered_and_named",
         *on_units("child-killed", "child-crashed")),
    ),
    Fault(
        "child-hangs", "llama-server is stopped, or answers health checks and computes nothing",
        "found within three times the bound, killed, replaced",
        ("unit/test_hang.py::test_requests_that_do_not_move_end_the_child_with_evidence",
         "system/test_hang.py::test_a_server_that_hangs_is_replaced_and_its_stream_says_why", *on_units("child-stopped")),
    ),
    Fault(
        "child-ignores-term", "llama-server ignores SIGTERM", "SIGKILL to its group at the time-out, at most 1 s later",
        (f"{_F}a_child_that_ignores_term_is_gone_in_time", "unit/test_child.py::test_the_ladder_ends_in_a_kill",
         *on_units("term-ignored")),
    ),
    Fault(
        "child-unkillable", "llama-server waits in the kernel and takes no SIGKILL",
        "state `stuck`, an error in the journal, no second one, the unit still answers",
        (f"{_F}a_child_that_cannot_be_killed_is_told_and_has_no_second_beside_it", *on_units("child-unkillable")),
    ),
    Fault(
        "gpu-oom", "the GPU is out of memory at the load, or at the first prompt",
        "one step down a failure, at most six, learned, no file of the admin touched",
        (f"{_S}out_of_memory_at_load_is_planned_smaller_and_started_at_once",
         f"{_S}out_of_memory_while_serving_is_planned_smaller", f"{_S}memory_that_is_short_again_and_again_is_given_up",
         "unit/test_step_down.py::test_guesses_reach_context_min_in_six_steps_and_each_is_smaller",
         "system/test_out_of_memory.py::test_one_start_ends_ready_the_next_is_right_at_once_and_forgetting_tries_anew"),
        needs_gpu="an out-of-memory of CUDA or ROCm itself, at the load and at the first prompt",
    ),
    Fault(
        "host-oom", "the kernel's out-of-memory killer takes llama-server",
        "the cause is host-out-of-memory, nothing is learned of the GPU, llamad lives",
        ("unit/test_cause.py::test_the_kernels_killer_is_told_from_a_persons_kill",
         f"{_F}kills_for_lack_of_memory_are_counted_in_both_kinds_of_control_groups",
         *on_units("host-out-of-memory")),
    ),
    Fault(
        "cpu-fallback", "the engine silently falls back to the CPU", "READY is never sent; exit status 69 with a fix",
        (f"{_S}a_server_on_the_cpu_that_says_it_offloaded_is_never_ready", f"{_S}misplaced_bytes_are_never_ready",
         "system/test_service.py::test_misplaced_weights_never_become_ready", *on_units("no-device")),
        needs_gpu="a CUDA driver that is gone",
    ),
    Fault(
        "fork-bomb", "a fork bomb in llama-server, up to TasksMax=", "llamad answers; the group is killed",
        (f"{_F}no_thread_to_be_had_is_told_and_ends_nothing", f"{_F}a_first_start_without_a_process_is_tried_again",
         *on_units("fork-bomb")),
    ),
    Fault(
        "log-flood", "a million lines, a line of 200 kB, binary, no line end",
        "no stall, at most 8 MiB more, llamad's own events are never lost",
        (f"{_S}a_flood_a_long_line_and_binary_neither_stall_nor_grow", f"{_F}a_flood_of_lines_never_costs_an_event_of_ours",
         *on_units("log-flood")),
    ),
    Fault(
        "disk-full", "the disk of the state is full, or read-only",
        "goes on serving, one warning, the old files are intact",
        ("unit/test_learned.py::test_a_disk_that_is_full_keeps_what_was_there",
         "unit/test_ledger.py::test_a_full_disk_refuses_a_start_and_lets_the_others_live",
         "unit/test_service_io.py::test_a_full_disk_costs_a_stale_status_only", *on_units("disk-full", "disk-read-only")),
    ),
    Fault(
        "no-descriptors", "no file descriptor is left", "the start fails with its own error, is tried again, nothing leaks",
        ("unit/test_child.py::test_no_descriptor_is_lost_and_a_failed_start_is_typed",
         f"{_F}thirty_two_descriptors_are_told_tried_again_and_none_is_lost",
         "unit/test_relay_close.py::test_no_file_descriptor_left_for_a_connection_passes", *on_units("no-descriptors")),
    ),
    Fault(
        "clock-jump", "the wall clock jumps a day, either way", "no restart, no other back-off",
        (f"{_F}a_wall_clock_that_jumps_changes_no_delay", *on_units("clock-jumps")),
    ),
    Fault(
        "signal-storm", "10,000 SIGHUPs", "one reload at a time, and one more at most; the last content is in force",
        ("unit/test_reloads.py::test_ten_thousand_hang_ups_are_at_most_one_reload_more",
         f"{_F}ten_thousand_real_hang_ups_are_two_reloads", *on_units("hang-up-storm")),
    ),
    Fault(
        "config-churn", "1,000 edits by eight writers in seven styles",
        "the last content is in force within 3 s; descriptors and threads as before; no restart for a comment",
        ("unit/test_config_watch.py::test_a_thousand_edits_by_eight_writers_end_in_the_last_and_leak_nothing",
         "unit/test_reloads.py::test_a_thousand_edits_by_eight_writers_end_in_the_last_without_a_restart",
         "system/test_reload.py::test_the_reload_matrix_with_fifty_streams"),
    ),
    Fault(
        "broken-definition", "the definition is empty, half-written, deleted, a folder, a loop, 10 MB, not UTF-8",
        "the old one stays in force; the error names file and line",
        ("unit/test_config_load.py::test_each_mistake_is_one_line_with_place_and_fix",
         "unit/test_config_load.py::test_things_that_are_no_files",
         "unit/test_config_watch.py::test_a_look_survives_whatever_lies_there",
         "unit/test_reloads.py::test_a_mistake_is_told_once_with_its_place_and_stays_in_the_status",
         "unit/test_reloads.py::test_a_definition_that_is_gone_is_served_on",
         "system/test_lifecycle.py::test_reload_with_a_broken_file_fails_and_changes_nothing",
         *on_units("broken-definitions")),
    ),
    Fault(
        "daemon-killed", "llamad gets SIGKILL", "no orphan, the memory is free, serving again",
        ("unit/test_child.py::test_the_child_dies_with_us", "unit/test_ledger.py::test_a_killed_server_holds_nothing",
         "system/test_lifecycle.py::test_sigkill_of_llamad_refuses_nobody_and_resets_only_what_was_in_flight",
         "system/test_lifecycle.py::test_sigkill_in_the_foreground_leaves_no_orphan", *on_units("daemon-killed")),
    ),
    Fault(
        "daemon-stopped", "llamad is stopped (SIGSTOP)", "replaced within WatchdogSec= and 5 s",
        on_units("daemon-stopped"),
    ),
    Fault(
        "double-start", "a second llamad serves the same model", "exit status 75 within 100 ms, naming the first",
        ("unit/test_ledger.py::test_a_second_server_of_a_name_is_refused_at_once_and_told_by_whom",
         "system/test_lifecycle.py::test_a_second_server_of_the_same_name_is_refused", *on_units("double-start")),
    ),
    Fault(
        "two-models", "models start at once on one GPU", "plans never sum above what is free, with twenty starts",
        ("unit/test_ledger_race.py::test_twenty_at_once_share_two_cards_and_all_get_their_turn",
         *on_units("race-for-memory")),
        needs_gpu="free bytes by a real driver",
    ),
    Fault(
        "pid-reuse", "a stranger gets the process id of llama-server", "it is never signalled",
        (f"{_F}a_stranger_with_the_id_of_a_child_is_never_signalled", *on_units("pid-reused")),
    ),
    Fault(
        "port-taken", "the address is taken", "it is said by whom as far as that can be known; no restart loop",
        ("unit/test_service_io.py::test_an_address_is_bound_stored_and_taken_back", *on_units("port-taken")),
    ),
    Fault(
        "late-device", "the device node comes late", "exit status 69, found by a later start, never READY on the CPU",
        ("system/test_devices.py::test_a_device_that_appears_is_used_without_a_human",
         "system/test_devices.py::test_without_a_device_the_unit_is_retried_and_says_why", *on_units("late-device")),
        needs_gpu="nvidia-uvm that is made ten seconds after the boot",
    ),
    Fault(
        "suspend", "the host is suspended and wakes up", "devices are probed again, one restart",
        needs_gpu="a machine with a GPU that sleeps; by hand",
    ),
    Fault(
        "journal-gone", "journald is stopped, or reads nothing; the manager's socket is gone", "no block, no crash",
        ("unit/test_service_io.py::test_a_journal_that_does_not_listen_blocks_nobody",
         "unit/test_service_io.py::test_a_service_manager_that_reads_nothing_stops_nobody",
         *on_units("journal-stopped", "journal-frozen", "notify-socket-gone")),
    ),
    Fault(
        "package-changes", "upgrade, removal, purge, installation again while a model is served",
        "served again by the new one; nothing is left of a removed one but what the admin wrote",
        ("unit/test_packaging.py::test_purging_never_touches_models",
         *on_units("package-again", "package-removed")),
    ),
)  # fmt: skip
