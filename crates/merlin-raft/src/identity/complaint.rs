//! Handshakes between nodes that fail, in words for the operator who has to mend it.
//!
//! A broken identity or a wrong clock makes every attempt of every connection fail, many times a
//! second. It is said once for each address, and again after a while.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::{AlertDescription, CertificateError, Error};

/// What is still wrong after this time is worth another line.
const AGAIN: Duration = Duration::from_secs(600);

/// Addresses that are remembered; strangers can have as many as they like.
const MAX_ADDRESSES: usize = 256;

const NOT_GOOD_NOW: &str = "the certificate of the node there is not good at this time: is the \
     clock right, here and there?";
const OTHER_AUTHORITY: &str = "the node there has a certificate of another authority: it belongs \
     to another cluster, or its identity directory was replaced";
const OTHER_NODE: &str = "another node of the cluster answers there: is the address right, or was \
     its identity directory taken from another node?";
const DISTRUSTED: &str = "the node there does not trust this node's certificate: it belongs to \
     another cluster, or this node's identity directory was replaced";
const NOT_GOOD_THERE: &str = "this node's certificate is not good at this time to the node there: \
     is the clock right, here and there?";

/// What a failed handshake says about the nodes; nothing when it is the network's fault, or a
/// stranger's.
fn words(error: &io::Error) -> Option<&'static str> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Some(NOT_GOOD_NOW),
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Some(OTHER_AUTHORITY)
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Some(OTHER_NODE)
            }
            _ => None,
        },
        Error::AlertReceived(alert) => match alert {
            AlertDescription::UnknownCA
            | AlertDescription::DecryptError
            | AlertDescription::BadCertificate => Some(DISTRUSTED),
            AlertDescription::CertificateExpired => Some(NOT_GOOD_THERE),
            _ => None,
        },
        _ => None,
    }
}

/// What has been said about whom.
#[derive(Debug, Default)]
pub(super) struct Complaints(Mutex<HashMap<String, (&'static str, Instant)>>);

impl Complaints {
    /// Says what is wrong with whoever is at an address, if that is known and news.
    pub(super) fn hear(&self, address: &str, error: &io::Error) {
        match words(error) {
            Some(reason) if self.is_news(address, reason, Instant::now()) => {
                tracing::warn!(address, reason, "no connection with another node");
            }
            _ => tracing::debug!(address, %error, "a handshake failed"),
        }
    }

    fn is_news(&self, address: &str, reason: &'static str, now: Instant) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match said.get(address) {
            Some((same, at)) if *same == reason && now.duration_since(*at) < AGAIN => false,
            _ => {
                if said.len() >= MAX_ADDRESSES {
                    said.clear();
                }
                said.insert(address.to_owned(), (reason, now));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: Error) -> Option<&'static str> {
        words(&io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn what_an_operator_can_mend_has_words() {
        for (error, hint) in [
            (CertificateError::UnknownIssuer, "another cluster"),
            (CertificateError::BadSignature, "another cluster"),
            (CertificateError::Expired, "clock"),
            (CertificateError::NotValidYet, "clock"),
            (CertificateError::NotValidForName, "another node"),
        ] {
            let words = of(Error::InvalidCertificate(error)).unwrap();
            assert!(words.contains(hint), "{words}");
        }
        for (alert, hint) in [
            (AlertDescription::UnknownCA, "does not trust"),
            (AlertDescription::CertificateExpired, "clock"),
        ] {
            assert!(of(Error::AlertReceived(alert)).unwrap().contains(hint));
        }
        assert_eq!(of(Error::HandshakeNotComplete), None);
        assert_eq!(words(&io::ErrorKind::ConnectionRefused.into()), None);
    }

    #[test]
    fn the_same_is_said_once_in_a_while() {
        let complaints = Complaints::default();
        let start = Instant::now();
        assert!(complaints.is_news("a", OTHER_NODE, start));
        assert!(!complaints.is_news("a", OTHER_NODE, start + AGAIN / 2));
        assert!(complaints.is_news("b", OTHER_NODE, start));
        assert!(complaints.is_news("a", NOT_GOOD_NOW, start));
        assert!(complaints.is_news("a", NOT_GOOD_NOW, start + AGAIN));
        for n in 0..=MAX_ADDRESSES {
            assert!(complaints.is_news(&format!("c{n}"), OTHER_NODE, start));
        }
        assert!(complaints.0.lock().unwrap().len() <= MAX_ADDRESSES);
    }
}
