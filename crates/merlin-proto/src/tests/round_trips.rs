//! What is logged, snapshotted and listed is read back as it was.

use merlin_model::{AuditTrail, Catalog, Command};
use proptest::prelude::*;
use prost::Message;

use super::generators;
use crate::{DecodeError, log, server, service, types};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_command_survives_the_log(command in generators::command()) {
        let bytes = log::Command::from(&command).encode_to_vec();
        let message = log::Command::decode(&*bytes).unwrap();
        prop_assert_eq!(Command::try_from(&message), Ok(command));
    }

    #[test]
    fn arbitrary_bytes_are_a_command_or_an_error(bytes: Vec<u8>) {
        if let Ok(message) = log::Command::decode(&*bytes)
            && let Ok(command) = Command::try_from(&message)
        {
            let again = log::Command::from(&command);
            prop_assert_eq!(Command::try_from(&again), Ok(command));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_catalog_survives_a_snapshot(catalog in generators::catalog()) {
        let bytes = log::Catalog::from(&catalog).encode_to_vec();
        let message = log::Catalog::decode(&*bytes).unwrap();
        prop_assert_eq!(Catalog::try_from(&message), Ok(catalog));
    }

    #[test]
    fn every_audit_trail_survives_a_snapshot(trail in generators::audit_trail()) {
        let bytes = log::AuditTrail::from(&trail).encode_to_vec();
        let message = log::AuditTrail::decode(&*bytes).unwrap();
        prop_assert_eq!(AuditTrail::from(&message), trail);
    }

    #[test]
    fn a_listing_holds_all_that_is_declared_in_order(catalog in generators::catalog()) {
        let listing = types::ListResponse::from(&catalog);
        prop_assert_eq!(listing.revision, catalog.revision().0);
        prop_assert_eq!(listing.items.len(), catalog.services().len());
        for (item, holder) in listing.items.iter().zip(catalog.services()) {
            let mut read = service::stored(item.service.as_ref().unwrap()).unwrap();
            for message in &item.servers {
                let (id, server) = server::stored(message).unwrap();
                prop_assert_eq!(&id, &holder.id);
                read.servers.insert(server.key, server.into());
            }
            prop_assert_eq!(&read, &**holder);
            let order: Vec<_> = item.servers.iter().map(|s| server::identity(s).unwrap().1).collect();
            prop_assert!(order.is_sorted());
        }
    }
}

#[test]
fn what_no_version_wrote_is_an_error_that_says_what_is_wrong() {
    let nothing = log::Command::default();
    assert_eq!(
        Command::try_from(&nothing),
        Err(DecodeError::Missing("the mutation"))
    );
    let nameless = log::Command {
        mutation: Some(log::command::Mutation::DeleteService(String::new())),
        ..Default::default()
    };
    let error = Command::try_from(&nameless).unwrap_err();
    assert_eq!(error.to_string(), "the mutation is invalid");

    let shared = |id: &str| types::list_response::Item {
        service: Some(types::VirtualService {
            id: id.to_owned(),
            key: Some(types::virtual_service::Key {
                fwmark: 1,
                ..Default::default()
            }),
            config: Some(types::virtual_service::Config {
                scheduler: "rr".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        servers: Vec::new(),
    };
    let torn = log::Catalog {
        items: vec![shared("a"), shared("b")],
        ..Default::default()
    };
    let error = Catalog::try_from(&torn).unwrap_err();
    assert_eq!(error.to_string(), "the snapshot contradicts itself");
}
