//! Why a table could not be opened, read or changed.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::wire::Malformed;

/// The calls of a [`Dataplane`](crate::Dataplane), for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    Dump,
    Keys,
    Read,
    Apply,
    Live,
    Fingerprint,
    Timeouts,
    SetTimeouts,
    /// Any other request of the protocol.
    Request,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dump => "reading the IPVS table",
            Self::Keys => "listing the services of the IPVS table",
            Self::Read => "reading services of the IPVS table",
            Self::Apply => "changing the IPVS table",
            Self::Live => "reading the counters of the IPVS table",
            Self::Fingerprint => "fingerprinting the IPVS table",
            Self::Timeouts => "reading the IPVS timeouts",
            Self::SetTimeouts => "setting the IPVS timeouts",
            Self::Request => "a request to IPVS",
        })
    }
}

/// Why the kernel's IPVS cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("IPVS is not available: modprobe ip_vs (or run with --dataplane memory)")]
    Missing,
    #[error(
        "not permitted to administer IPVS: this takes CAP_NET_ADMIN in the initial user \
         namespace, being root in a container's own user namespace is not enough \
         (or run with --dataplane memory)"
    )]
    NotPermitted,
    #[error("no netlink socket")]
    Socket(#[source] io::Error),
    #[error("the kernel would not say whether it has IPVS")]
    Resolve(#[source] io::Error),
    #[error("the kernel's answer about IPVS makes no sense")]
    Malformed(#[source] Malformed),
}

/// The table as a whole could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The kernel refused the call as a whole.
    #[error("{call} was refused")]
    Refused {
        call: Call,
        #[source]
        source: io::Error,
    },
    #[error("{call} failed")]
    Io {
        call: Call,
        #[source]
        source: io::Error,
    },
    /// Answers of the kernel did not fit into the socket's buffer.
    #[error("{call} failed: the kernel dropped answers for want of buffer space")]
    Lost { call: Call },
    /// The kernel took the request and did not answer.
    #[error("{call} failed: the kernel did not answer")]
    Unanswered { call: Call },
    #[error("{call} failed: the kernel's answer makes no sense")]
    Malformed {
        call: Call,
        #[source]
        source: Malformed,
    },
    /// The table changed every time it was read, so what was read may be short of entries.
    #[error("{call} failed: another program keeps changing it")]
    Unsettled { call: Call },
    /// A call has not returned; until it does, no other can begin.
    #[error("{call} has been hanging for {}", seconds(*elapsed))]
    Hanging { call: Call, elapsed: Duration },
    /// The thread that owns the table has panicked. Nothing will work again.
    #[error("the thread that owns the IPVS table has died")]
    Died,
}

impl DataplaneError {
    /// Whether no later call can succeed either.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Died)
    }
}

fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}
