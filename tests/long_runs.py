"""Which tests take long: those that `scripts/test --long` runs besides, and the files that begin first.

A test is here that takes ten seconds and more, and is one form of several that are tried: the others run each time.
"""

LONG = frozenset({
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
    "test_audit.py::test_an_eir_that_misses_one_in_a_hundred_is_found_and_one_that_misses_none_passes",
    "test_bench.py::test_ecr_over_sctp",
    "test_bench.py::test_sizes_of_pairs",
    "test_bench.py::test_switch_with_redis",
    "test_first_day.py::test_the_lines_of_the_page_do_what_it_says",
    "test_hostile.py::TestSoak::test_network",
    "test_hostile.py::test_thousands_of_connections",
    "test_load_kill.py::test_every_step[redis-release]",
    "test_load_kill.py::test_every_step[sqlite-store]",
    "test_mutants.py::test_what_no_test_noticed_is_told_with_file_line_and_diff",
    "test_offline.py::test_the_lines_without_the_internet_install_without_a_network",
    "test_pairs.py::test_every_order_of_things_between_two_nodes[1]",
    "test_pairs.py::test_every_order_of_things_between_two_nodes[2]",
    "test_sctp.py::test_each_message_of_ours_is_one_of_sctp",
    "test_three_parties.py::test_a_clone_goes_from_one_operator_s_record_to_another_s_answer",
    "test_truth.py::test_a_million_answers_equal_those_of_a_plain_set",
    *(f"interop/test_over_sctp.py::{name}" for name in (
        *(f"{test}[{peer}-{paths}]" for test in ("test_every_answer_is_right", "test_each_kind_of_message_went_both_ways") for peer in ("otp", "agent") for paths in ("one", "two")),
        "test_nothing_is_malformed_and_each_data_chunk_is_a_message_of_diameter", "test_the_node_knows_the_paths", "test_our_own_probe_and_both_workers",
    )),
    *(f"test_life.py::test_any_chain_of_deltas_equals_the_list_that_it_leads_to[{kind}-valkey]" for kind in ("devices", "subscribers", "pairs")),
    *(f"test_owner.py::test_no_link_in_the_folder_has_root_write_elsewhere[{link}]" for link in (
        "lists.sqlite-new", "lists.sqlite-journal-precious", "sightings-day", "clock-precious", "images-day", "origin-state-id.new-precious",
    )),
})  # fmt: skip
FIRST = (
    "test_serve.py", "test_bench.py", "faults/test_record.py", "test_cli.py", "test_hostile.py", "test_workers.py", "test_pages.py", "test_apart.py",
    "test_inbox.py", "test_deploy.py", "faults/test_in_the_middle.py", "test_store_contract.py", "faults/test_away.py", "test_conformance.py",
    "test_life.py", "test_tamper.py", "faults/test_lost_data.py", "test_n5g_node.py", "test_pull.py", "test_n5g_access.py", "test_redis.py",
    "interop/test_coming_back.py", "test_feed_node.py", "interop/test_python_diameter.py", "test_image.py", "test_events.py", "test_killed.py",
)  # fmt: skip


def is_long(item):
    return item.nodeid.removeprefix("tests/") in LONG


def place(item):
    """By which tests are sorted; those of other files stay in their order behind these."""
    name = item.nodeid.partition("::")[0].removeprefix("tests/")
    return FIRST.index(name) if name in FIRST else len(FIRST)
