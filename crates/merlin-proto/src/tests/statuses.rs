//! Which status every refusal and failure becomes, and what travels beside messages.

use std::time::Duration;

use merlin_model::catalog::Revision;
use merlin_model::command::{Rejection, Reply, RequestId};
use merlin_model::store::{Compacted, Consistency, ProposeError, ReadError};
use merlin_model::{Invalid, ServiceId};
use tonic::Code;
use tonic::metadata::MetadataMap;

use crate::metadata::{self, Conditions};
use crate::status::{Meaning, ToStatus, meaning};
use crate::types::virtual_service::Key;
use crate::{server, service};

fn web() -> ServiceId {
    ServiceId::new("web").unwrap()
}

#[test]
fn refusals_and_failures_have_their_own_codes_and_words() {
    let key = service::key(&Key {
        ip: "10.0.0.1".into(),
        port: 80,
        protocol: 1,
        ..Default::default()
    });
    let server = server::key(&crate::types::real_server::Key {
        ip: "10.1.0.1".into(),
        port: 8080,
    });
    let (key, server) = (key.unwrap(), server.unwrap());
    let reason = || "no leader".to_owned();
    let cases: Vec<(Box<dyn ToStatus>, Code, Meaning, &str)> = vec![
        (
            Box::new(Rejection::from(Invalid::new("key.port", "is required"))),
            Code::InvalidArgument,
            Meaning::Rejected,
            "key.port: is required",
        ),
        (
            Box::new(Rejection::ServiceExists(web())),
            Code::AlreadyExists,
            Meaning::Rejected,
            "service web already exists",
        ),
        (
            Box::new(Rejection::KeyTaken { key, holder: web() }),
            Code::AlreadyExists,
            Meaning::Rejected,
            "TCP 10.0.0.1:80 already belongs to service web",
        ),
        (
            Box::new(Rejection::ServerExists {
                service: web(),
                key: server,
            }),
            Code::AlreadyExists,
            Meaning::Rejected,
            "real server 10.1.0.1:8080 of service web already exists",
        ),
        (
            Box::new(Rejection::ServiceNotFound(web())),
            Code::NotFound,
            Meaning::Rejected,
            "service web does not exist",
        ),
        (
            Box::new(Rejection::Conflict {
                expected: Revision(3),
                actual: Some(Revision(5)),
            }),
            Code::Aborted,
            Meaning::Rejected,
            "expected revision 3, but the object last changed at revision 5",
        ),
        (
            Box::new(ProposeError::Rejected(Rejection::ServiceNotFound(web()))),
            Code::NotFound,
            Meaning::Rejected,
            "service web does not exist",
        ),
        (
            Box::new(ProposeError::Unavailable { reason: reason() }),
            Code::Unavailable,
            Meaning::Unavailable,
            "the store is not available: no leader",
        ),
        (
            Box::new(ProposeError::Outdated { reason: reason() }),
            Code::FailedPrecondition,
            Meaning::Rejected,
            "no leader",
        ),
        (
            Box::new(ProposeError::Unknown { reason: reason() }),
            Code::Unknown,
            Meaning::Unknown,
            "the change may or may not have been applied: no leader",
        ),
        (
            Box::new(ProposeError::TooLarge { size: 9, limit: 8 }),
            Code::ResourceExhausted,
            Meaning::Rejected,
            "the command is too large: 9 bytes, at most 8",
        ),
        (
            Box::new(ReadError::Unavailable { reason: reason() }),
            Code::Unavailable,
            Meaning::Unavailable,
            "the store is not available: no leader",
        ),
        (
            Box::new(ReadError::Timeout(Duration::from_secs(2))),
            Code::DeadlineExceeded,
            Meaning::Unknown,
            "no answer from the store within 2s",
        ),
        (
            Box::new(Compacted {
                oldest: Revision(7),
            }),
            Code::OutOfRange,
            Meaning::Rejected,
            "events before revision 7 are no longer kept",
        ),
    ];
    for (error, code, means, words) in cases {
        let status = error.to_status();
        assert_eq!(
            (status.code(), meaning(&status), status.message()),
            (code, means, words)
        );
    }
}

#[test]
fn conditions_and_replies_survive_the_metadata() {
    let conditions = Conditions {
        expected_revision: Some(Revision(0)),
        request_id: Some(RequestId::new("0190-abc").unwrap()),
    };
    let mut map = MetadataMap::new();
    conditions.write(&mut map);
    assert_eq!(Conditions::read(&map), Ok(conditions));
    assert_eq!(
        Conditions::read(&MetadataMap::new()),
        Ok(Conditions::default())
    );

    let reply = Reply {
        revision: Revision(u64::MAX),
        changed: false,
    };
    metadata::write_reply(&reply, &mut map);
    assert_eq!(metadata::read_reply(&map), Some(reply));
    assert_eq!(metadata::read_reply(&MetadataMap::new()), None);

    for consistency in [Consistency::Linearizable, Consistency::Stale] {
        metadata::write_consistency(consistency, &mut map);
        assert_eq!(metadata::read_consistency(&map), Ok(consistency));
    }
    assert_eq!(
        metadata::read_consistency(&MetadataMap::new()),
        Ok(Consistency::Linearizable)
    );
}

#[test]
fn metadata_that_means_nothing_is_refused_by_name() {
    for (name, value) in [
        (metadata::EXPECTED_REVISION, "-1"),
        (metadata::EXPECTED_REVISION, "seven"),
        (metadata::REQUEST_ID, ""),
        (metadata::REQUEST_ID, "a b"),
    ] {
        let mut map = MetadataMap::new();
        map.insert(name, value.parse().unwrap());
        assert_eq!(Conditions::read(&map).unwrap_err().field, name, "{value:?}");
    }
    let mut map = MetadataMap::new();
    map.insert(metadata::CONSISTENCY, "eventual".parse().unwrap());
    let error = metadata::read_consistency(&map).unwrap_err();
    assert_eq!(error.field, metadata::CONSISTENCY);
}
