//! Ports that nobody else takes.

use std::net::SocketAddr;

use tokio::net::TcpSocket;

/// A TCP port on loopback that belongs to this value.
///
/// A bound socket that does not listen keeps it: with `SO_REUSEADDR` on both sides the daemon can
/// still listen there, again after every restart, but the system gives it to nobody else.
#[derive(Debug)]
pub(crate) struct Port {
    _held: TcpSocket,
    addr: SocketAddr,
}

impl Port {
    pub(crate) fn reserve() -> Self {
        let held = TcpSocket::new_v4().unwrap();
        held.set_reuseaddr(true).unwrap();
        held.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let addr = held.local_addr().unwrap();
        Self { _held: held, addr }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}
