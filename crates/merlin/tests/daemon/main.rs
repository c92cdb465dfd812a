//! The built daemon from outside: what its users, clients and supervisors see. Every test starts
//! the program with a directory and ports of its own, and talks to it over its sockets.
//!
//! # The defects of the earlier system
//!
//! Each is a test that this one passes, here or where it can be shown best:
//!
//! | | defect | test |
//! |---|---|---|
//! | 1 | a reconcile reset every check and leaked the old one | merlin-reconcile `verdicts_become_weights_and_an_edited_check_changes_nothing`, merlin-health `a_sync_touches_only_what_changed` |
//! | 2 | a restart set every checked weight to 0 | merlin-reconcile `a_restart_without_verdicts_changes_no_weight`, e2e `kernel/restart.rs` under load |
//! | 3 | `web` received the servers of `web2` | `catalog::a_service_whose_name_begins_anothers_has_its_own_servers_only` |
//! | 4 | a store error crashed the list calls | `pages::a_node_without_a_quorum_says_so_and_why_until_there_is_one`; for etcd in merlin-etcd |
//! | 5 | one bad service crash-looped every node | merlin-reconcile `a_service_the_kernel_refuses_is_reported_once_and_does_not_stop_the_others`, e2e `a_scheduler_the_kernel_lacks_is_reported` |
//! | 6 | a foreign service of another kind made listing fail | e2e `foreign_services_of_any_kind_disturb_nothing` |
//! | 7 | foreign services were deleted (a choice) | merlin-reconcile `a_catalog_that_never_held_anything_deletes_nothing`, `foreign_services_stay_if_told_to_and_declared_ones_still_go` |
//! | 8 | deleting a service left its servers and checks | `catalog::deleting_a_service_deletes_its_servers_and_their_checks` |
//! | 9 | create and update raced | `races::writes_that_race_through_three_nodes_are_decided_once` |
//! | 10 | unknown flags were dropped, flags could not be cleared | `catalog::unknown_flags_are_refused_and_flags_can_be_cleared` |
//! | 11 | the check's URL lost its query, broke on IPv6, followed redirects, read endless bodies | merlin-health `tests/probe.rs`, `health::an_ipv6_server_is_probed_with_the_whole_endpoint` |
//! | 12 | the check of the timeout looked at the period | `refusals::a_bad_field_is_an_invalid_argument_and_named` |
//! | 13 | the forwarding method was not asked for | meradm `senseless_command_lines_are_usage_errors` |
//! | 14 | N events meant N whole resyncs | merlin-reconcile `one_change_reads_and_touches_its_service_alone` |
//! | 15 | servers were removed without draining | a later version's; weight 0 drains until then |
//! | 16 | `/health` always said ok | `pages::a_node_without_a_quorum_says_so_and_why_until_there_is_one` |
//! | 17 | an undecodable record panicked every node | merlin-etcd; for the embedded store `damage` |
//! | 18 | IPv6 was not supported | `catalog::services_of_every_kind_are_listed_and_programmed`, e2e `every_forwarding_method_carries_traffic` |

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, helpers too")]
#![allow(clippy::print_stderr, reason = "a failed test shows the daemon's log")]

mod catalog;
mod clients;
mod conditions;
mod damage;
mod discovery;
mod disk;
mod health;
mod manual;
mod options;
mod pages;
mod races;
mod refusals;
mod signals;
mod socket;
mod strangers;
mod support;
mod watch;
