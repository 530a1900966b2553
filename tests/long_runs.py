"""Long tests: those that `scripts/test --long` runs besides, and the files that begin first.

A test is here that takes ten seconds and more, and is one form of several that are tried: the others run each time.
"""

LONG = frozenset({
    "node/processes/test_owner.py::test_no_link_in_the_folder_has_root_write_elsewhere[control.sock-precious]",
    "node/processes/test_owner.py::test_no_link_in_the_folder_has_root_write_elsewhere[lists.sqlite-empty]",
    "node/processes/test_owner.py::test_no_link_in_the_folder_has_root_write_elsewhere[lock-new]",
    "faults/test_in_the_middle.py::test_the_staged_set_vanishes[flushed-HSET-2]",
    "faults/test_in_the_middle.py::test_the_staged_set_vanishes[flushed-\\r\\nHLEN\\r\\n-4]",
    "interop/test_upgrade.py::test_no_request_is_lost_there_and_back",
    "interfaces/n5g/test_n5g_access.py::test_the_probe_and_the_audit_bring_a_token",
    "interfaces/n5g/test_n5g_node.py::test_an_idle_libcurl_is_sent_away_in_order_and_its_next_request_is_answered",
    *(f"scripts/test_bench.py::test_{part}" for part in ("n5g", "profile", "sightings", "sizes", "switch", "workers")),
    "faults/test_policies.py::test_each_answer_follows_from_policy_and_rows[Redis]",
    *(f"whole/test_demo.py::{name}" for name in ("test_the_demo_runs_as_described", "test_a_country_on_one_machine")),
    "faults/test_away.py::test_latency_and_cut_connections",
    "faults/test_drop_folder.py::test_one_of_two_nodes_loads_and_the_other_when_that_one_died",
    "faults/test_groups.py::test_a_cluster_node_is_lost",
    "faults/test_groups.py::test_a_failover_to_a_replica_that_lags",
    "faults/test_in_the_middle.py::test_redis_is_killed[HSET-2]",
    "faults/test_in_the_middle.py::test_redis_is_killed[\\r\\nHLEN\\r\\n-4]",
    "faults/test_in_the_middle.py::test_the_staged_set_vanishes[evicted-HSET-2]",
    "faults/test_in_the_middle.py::test_the_staged_set_vanishes[evicted-\\r\\nHLEN\\r\\n-4]",
    "faults/test_in_the_middle.py::test_the_staged_set_vanishes[evicted-\\r\\nEXEC\\r\\n-1]",
    "interop/test_freediameter.py::test_one_of_two_nodes_stops_while_requests_flow[15]",
    "lists/changes/test_audit.py::test_an_eir_that_misses_one_in_a_hundred_is_found_and_one_that_misses_none_passes",
    "scripts/test_bench.py::test_ecr_over_sctp",
    "scripts/test_bench.py::test_sizes_of_pairs",
    "scripts/test_bench.py::test_switch_with_redis",
    "interop/test_osmocom.py::test_a_phone_attaches_or_is_refused_over_sctp",
    "interfaces/map/test_map_node.py::test_one_of_two_paths_is_cut_and_comes_back",
    "interfaces/feed/test_feed_kill.py::test_each_row_that_was_answered_is_there[redis-1]",
    "interfaces/feed/test_feed_kill.py::test_each_row_that_was_answered_is_there[sqlite-1]",
    "deploy/test_first_day.py::test_the_lines_of_the_page_have_the_described_effect",
    "wire/diameter/test_hostile.py::TestSoak::test_attacks",
    "wire/diameter/test_hostile.py::TestSoak::test_network",
    "wire/diameter/test_hostile.py::test_thousands_of_connections",
    "lists/changes/test_load_kill.py::test_every_step[redis-release]",
    "lists/changes/test_load_kill.py::test_every_step[sqlite-store]",
    "scripts/test_mutants.py::test_a_mutant_that_no_test_noticed_is_reported_with_file_line_and_diff",
    "deploy/test_packages.py::test_a_fresh_clone_sets_up_what_a_release_needs",
    "deploy/test_offline.py::test_the_lines_without_the_internet_install_without_a_network",
    "wire/diameter/test_pairs.py::test_every_order_of_things_between_two_nodes[1]",
    "wire/diameter/test_pairs.py::test_every_order_of_things_between_two_nodes[2]",
    "wire/diameter/test_sctp.py::test_any_stream_any_identifier_any_cut_is_taken",
    "wire/diameter/test_sctp.py::test_each_message_of_ours_is_one_of_sctp",
    "whole/test_three_parties.py::test_a_clone_goes_from_one_operator_s_record_to_another_s_answer",
    "whole/test_truth.py::test_a_million_answers_equal_those_of_a_plain_set",
    *(f"cli/test_backup.py::test_a_host_comes_back_from_its_backup[{store}-{store}]" for store in ("sqlite", "redis")),
    "cli/test_backup.py::test_nothing_goes_behind_what_nodes_have_unless_it_is_forced[redis]",
    *(f"faults/test_acl.py::test_without_one_it_does_not[healer-{right}]" for right in ("+acl|dryrun", "+client|setinfo", "+hscan")),
    *(f"whole/test_life.py::test_any_chain_of_deltas_equals_the_list_that_it_leads_to[{kind}]" for kind in ("devices-sqlite", "subscribers-redis", "pairs-sqlite")),
    *(f"node/processes/test_workers.py::TestOverload::test_a_limit_is_the_nodes_wherever_the_connections_are[{limit}]" for limit in ("rate_max-1", "rate_max-3", "rate_max_all-1", "rate_max_all-2")),
    "whole/test_grace.py::test_one_period_and_then_none[redis]",
    "whole/test_grace.py::test_killed_processes_and_a_lost_store_cost_no_period[sqlite]",
    "whole/test_grace.py::test_a_clock_that_jumps_ahead_ends_no_period[redis]",
    "whole/test_grace.py::test_a_flood_of_one_peer_is_answered_and_not_recorded[redis]",
    "wire/diameter/test_hostile.py::TestSoak::test_overload",
    "wire/diameter/test_hostile.py::test_more_connections_than_open_files[1]",
    "wire/diameter/test_hostile.py::test_mmes_that_all_come_back_at_once_are_let_in[1]",
    *(f"scripts/test_bench.py::test_{part}" for part in ("follow", "gsup", "map", "peers", "redis_memory", "tamper", "trace")),
    "interfaces/feed/test_feed_node.py::test_each_row_that_was_answered_is_there_after_kill_9[redis]",
    "interop/test_mme_bytes.py::test_each_message_is_answered_so_that_the_phone_attaches_or_is_rejected_as_meant[cer-lenient0-False]",
    "interop/test_mme_bytes.py::test_each_message_is_answered_so_that_the_phone_attaches_or_is_rejected_as_meant[cer-relay-lenient1-True]",
    "interop/test_otp.py::test_it_comes_back[False]",
    *(f"interop/test_over_sctp.py::{name}" for name in (
        *(f"{test}[{peer}-{paths}]" for test in ("test_every_answer_is_right", "test_each_kind_of_message_went_both_ways") for peer in ("otp", "agent") for paths in ("one", "two")),
        "test_nothing_is_malformed_and_each_data_chunk_is_a_message_of_diameter", "test_the_node_knows_the_paths", "test_our_own_probe_and_both_workers",
    )),
    *(f"whole/test_life.py::test_any_chain_of_deltas_equals_the_list_that_it_leads_to[{kind}-valkey]" for kind in ("devices", "subscribers", "pairs")),
    *(f"node/processes/test_owner.py::test_no_link_in_the_folder_has_root_write_elsewhere[{link}]" for link in (
        "lists.sqlite-new", "lists.sqlite-journal-precious", "sightings-day", "clock-precious", "images-day", "origin-state-id.new-precious",
    )),
})  # fmt: skip
FIRST = (
    "node/processes/test_serve.py", "scripts/test_bench.py", "faults/test_record.py", "cli/test_cli.py", "wire/diameter/test_hostile.py", "node/processes/test_workers.py", "whole/test_pages.py", "node/processes/test_apart.py",
    "lists/sources/test_inbox.py", "deploy/test_deploy.py", "faults/test_in_the_middle.py", "lists/stores/test_store_contract.py", "faults/test_away.py", "wire/diameter/test_conformance.py",
    "whole/test_life.py", "sightings/test_tamper.py", "faults/test_lost_data.py", "interfaces/n5g/test_n5g_node.py", "lists/sources/test_pull.py", "interfaces/n5g/test_n5g_access.py", "lists/stores/test_redis.py",
    "interop/test_coming_back.py", "interfaces/feed/test_feed_node.py", "interop/test_python_diameter.py", "lists/images/test_image.py", "sightings/test_events.py", "node/processes/test_killed.py",
)  # fmt: skip


def is_long(item):
    return item.nodeid.removeprefix("tests/") in LONG


def place(item):
    """The key by which tests are sorted; those of other files stay in their order behind these."""
    name = item.nodeid.partition("::")[0].removeprefix("tests/")
    return FIRST.index(name) if name in FIRST else len(FIRST)
