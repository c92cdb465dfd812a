//! How programs find a merlin node and talk to it.
//!
//! * [`context`]: the file that makes somebody a client of one cluster.
//! * [`contexts`]: where a user keeps such files.
//! * [`mod@connect`]: which node to ask, and the channel to it: the local node's unix socket, plaintext,
//!   or TLS with a context.
//!
//! A client trusts the one authority in its context and whatever node of that cluster it reaches;
//! addresses prove nothing, so any of them may be dialled.

pub mod connect;
pub mod context;
pub mod contexts;
mod tls;

pub use connect::{ConnectError, Place, Wish, connect};
pub use context::{Context, ContextError};
pub use contexts::{Contexts, ContextsError};
