//! SHA-256 values that must not be taken for one another.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            pub(crate) fn of(bytes: &[u8]) -> Self {
                Self(Sha256::digest(bytes).into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

digest! {
    /// Of a CA's certificate in DER: how a join token names the cluster it trusts.
    CaFingerprint
}
digest! {
    /// Of a node's public key (SubjectPublicKeyInfo in DER): how a repeated join is recognised.
    KeyFingerprint
}
digest! {
    /// Of a join token's secret. The secret has 128 random bits, so a plain hash cannot be searched.
    SecretHash
}

impl SecretHash {
    /// Compares in constant time, so that the answer's delay tells nothing about the secret.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}
