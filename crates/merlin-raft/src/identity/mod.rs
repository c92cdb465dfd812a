//! Who a node is, and how it becomes a member: certificates, join tokens, enrolment.
//!
//! A cluster has one certificate authority ([`Ca`]), made when the cluster is. It speaks for
//! exactly two things: the number of a node in that cluster ([`PeerName`]), and the id of a client
//! that administers it from elsewhere ([`ClientName`]). Every connection between nodes is TLS 1.3
//! with a certificate at both ends ([`PeerTls`]).
//!
//! A new node gets its certificate for a join [`Token`], which an operator carries over:
//!
//! ```text
//! new node                                     any member
//!   generate key, persist it
//!   TLS, server's chain must hold the CA  ───▶  certificate + CA certificate
//!   whose sha256 the token names
//!   secret, CSR, name, address            ───▶  Redemption ─▶ replicated log: use counted and
//!                                               node number handed out in one command
//!   check and persist certificate         ◀───  certificate, CA, node number
//! ```
//!
//! Invariants
//! - A private key never leaves the node that made it, save the CA's, which is replicated so that
//!   every member can sign.
//! - No secret is sent before the other side has proved that it belongs to the token's cluster.
//! - The replicated state knows a token's secret only as its hash, and so does the log.
//! - A use of a token is counted together with handing out the node number, so a token never
//!   yields more nodes than it allows; the same key asking again is the same node.
//! - Certificates are signed for a name this code composed; of a request only its public key counts.
//!
//! Everything that decides takes time as a parameter; [`PeerTls`], [`enroll`] and [`Enrollment`] are
//! the drivers around it.

mod admission;
mod ca;
mod client;
mod codec;
mod complaint;
mod digest;
mod enroll;
mod enrollment;
mod key;
mod name;
mod node;
mod pin;
mod store;
#[cfg(test)]
mod testing;
mod tls;
mod token;

pub use admission::{
    Admission, EnrolledNode, EnrollmentAnswer, EnrollmentCommand, EnrollmentState, RedeemError,
    Redemption, RemovedNode, Role, TokenRecord,
};
pub use ca::{Ca, CaError};
pub use client::{
    ClientAnswer, ClientCommand, ClientError, ClientId, ClientName, ClientRecord, Clients,
    NoClient, check_client_name,
};
pub use codec::DecodeEnrollmentError;
pub use digest::{CaFingerprint, KeyFingerprint, SecretHash};
pub use enroll::{AnswerError, Applicant, Attempt, AttemptError, EnrollError, Enrolled, enroll};
pub use enrollment::{Enrollment, Member, Registrar, RegistrarError, Welcome};
pub(crate) use key::random_bytes;
pub use key::{KeyError, NodeKey, SigningRequest};
pub use name::{CertificateNameError, ClusterId, InvalidClusterId, PeerName};
pub use node::{IdentityError, NodeIdentity};
pub use pin::PinError;
pub(crate) use store::Life;
pub use store::{IdentityDir, IdentityStoreError};
pub(crate) use tls::Beside;
pub use tls::{Certificate, PeerConnection, PeerStream, PeerTls, TlsError, TlsStream, verify_peer};
pub use token::{InvalidTokenId, ParseTokenError, Secret, Token, TokenId};
