//! What every store must do, run on every store there is.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

#[path = "../support/mod.rs"]
mod support;

mod cases;
mod stores;

/// Runs every case on a fresh store.
macro_rules! suite {
    ($store:ident: $($case:ident),* $(,)?) => {
        mod $store {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let fixture = crate::stores::$store().await;
                    crate::cases::$case(&fixture.nodes).await;
                }
            )*
        }
    };
}

/// The one list of cases.
macro_rules! on {
    ($($store:ident),*) => {
        $(suite! {
            $store:
            what_was_declared_is_listed_with_its_revisions,
            one_object_has_one_key,
            an_update_merges_and_a_missing_object_is_not_found,
            a_service_goes_with_its_servers_and_only_once,
            a_server_needs_its_service,
            an_expected_revision_is_compared,
            a_request_is_answered_once_and_for_all,
            a_refusal_is_remembered_too,
            requests_of_one_id_at_once_change_one_thing,
            a_reader_sees_what_was_acknowledged_on_any_node,
            watches_tell_every_change_in_order,
            of_many_creations_one_wins,
            of_many_services_for_one_key_one_wins,
            no_update_is_lost,
            no_server_survives_its_service,
            every_kind_of_object_comes_back_as_it_was,
        })*
    };
}

on!(raft, etcd3, etcd2);
