//! Bounds of the memory for request ids, and that it is the same on every replica.

use crate::catalog::{Catalog, Requests};
use crate::command::{Command, Mutation, RequestId, Timestamp};
use crate::service::ServiceId;

fn delete(request: &str, at: u64) -> Command {
    Command {
        request_id: Some(RequestId::new(request).unwrap()),
        ..Command::new(
            Timestamp(at),
            Mutation::DeleteService {
                id: ServiceId::new("web").unwrap(),
            },
        )
    }
}

fn ids(catalog: &Catalog) -> Vec<String> {
    let remembered = catalog.remembered();
    remembered
        .map(|answer| answer.id.as_str().to_owned())
        .collect()
}

#[test]
fn the_oldest_answers_make_room() {
    let mut catalog = Catalog::default();
    for n in 0..Requests::MAX + 2 {
        catalog.apply(&delete(&n.to_string(), 0)).unwrap();
    }
    let ids = ids(&catalog);
    assert_eq!(ids.len(), Requests::MAX);
    assert_eq!(ids.first().map(String::as_str), Some("2"));
    assert_eq!(catalog.requests.answers.len(), Requests::MAX);
}

#[test]
fn a_repeated_request_does_not_stay_longer() {
    let mut catalog = Catalog::default();
    catalog.apply(&delete("a", 0)).unwrap();
    for n in 0..Requests::MAX {
        catalog.apply(&delete("a", 0)).unwrap();
        catalog.apply(&delete(&n.to_string(), 0)).unwrap();
    }
    assert_eq!(ids(&catalog).first().map(String::as_str), Some("0"));
}

#[test]
fn a_clock_that_jumps_ahead_does_not_make_retries_new() {
    let mut catalog = Catalog::default();
    catalog.apply(&delete("a", 0)).unwrap();
    let year = 365 * 24 * 60 * 60 * 1000;
    catalog.apply(&delete("b", year)).unwrap();
    assert_eq!(ids(&catalog), ["a", "b"]);
}

#[test]
fn clocks_that_disagree_do_not_make_replicas_forget_differently() {
    // The order of arrival is not the order of the stamps: they are those of several nodes.
    let mut catalog = Catalog::default();
    let hour = 60 * 60 * 1000;
    for n in 0..Requests::MAX {
        let at = if n == 0 { hour } else { n as u64 % 7 * hour };
        catalog.apply(&delete(&format!("x{n}"), at)).unwrap();
    }
    let restored = Catalog::restore(
        catalog.revision(),
        catalog.services().map(|service| (**service).clone()),
        catalog.remembered(),
    );
    assert_eq!(restored, Ok(catalog));
}
