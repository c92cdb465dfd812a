//! No bytes make a decoder panic or go on for ever.

use super::*;

/// Reads everything that any decoder can be asked for.
fn decode_all(buffer: &[u8]) {
    for frame in Frames::new(buffer) {
        let Ok(Frame {
            body: Body::Family(_, payload),
            ..
        }) = frame
        else {
            continue;
        };
        let _ = controller::family_id(payload);
        let Ok(message) = Message::decode(payload) else {
            continue;
        };
        let _ = message.service_key();
        let _ = message.service();
        for family in [Family::Ipv4, Family::Ipv6] {
            let _ = message.destination_key(family);
            let _ = message.destination(family);
        }
        let _ = message.daemon_state();
        let _ = message.daemon();
        let _ = message.timeouts();
        let _ = message.info();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        decode_all(&bytes);
        for attribute in Attributes::new(&bytes) {
            let _ = attribute;
        }
        let _ = Message::decode(&bytes);
        let _ = controller::family_id(&bytes);
    }

    #[test]
    fn mutated_messages_never_panic(
        (key, service) in keyed_services(),
        (at, destination) in destinations(),
        daemon in daemons(),
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..30),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut buffer = Vec::new();
        for request in [
            Request::NewService(&key, &service),
            Request::NewDest(&key, &at, &destination),
            Request::NewDaemon(&daemon),
            Request::SetConfig(Timeouts::default()),
        ] {
            buffer.extend(encode(&request, 1));
        }
        for hex in [captured::FAMILY, captured::INFO, captured::SERVICES, captured::DESTINATIONS] {
            buffer.extend(captured::bytes(hex));
        }
        for (index, byte) in mutations {
            let index = index.index(buffer.len());
            buffer[index] = byte;
        }
        decode_all(&buffer);
        decode_all(&buffer[..cut.index(buffer.len())]);
    }

    #[test]
    fn every_iteration_ends(bytes in proptest::collection::vec(0..8_u8, 0..200)) {
        prop_assert!(Frames::new(&bytes).count() <= bytes.len() / 16 + 1);
        prop_assert!(Attributes::new(&bytes).count() <= bytes.len() / 4 + 1);
    }
}
